"""The vocabulary of a model: the pieces of its tokenizer, the rows of its tables, and the files that name their ids."""
