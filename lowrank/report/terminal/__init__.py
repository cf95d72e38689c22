"""What a command prints: tables, progress and complaints."""
