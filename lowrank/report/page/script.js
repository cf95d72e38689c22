"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Tabs: links to sections become tabs; without this script all sections stand below each other.
  const list = document.getElementById("tabs");
  const tabs = all("a", list);
  const panels = tabs.map((tab) => document.querySelector(tab.getAttribute("href")));
  list.setAttribute("role", "tablist");
  list.parentElement.setAttribute("role", "presentation");
  all("li", list).forEach((item) => item.setAttribute("role", "presentation"));
  tabs.forEach((tab, i) => {
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[i].id);
    panels[i].setAttribute("role", "tabpanel");
    panels[i].setAttribute("aria-labelledby", tab.id);
    panels[i].tabIndex = 0;
  });
  const show = (at, focus) => {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === at));
      tab.tabIndex = i === at ? 0 : -1;
      panels[i].hidden = i !== at;
    });
    if (focus) tabs[at].focus();
    hideTip();
  };
  const named = () => Math.max(0, panels.findIndex((panel) => `#${panel.id}` === location.hash));
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", (event) => {
      event.preventDefault();
      history.replaceState(null, "", tab.getAttribute("href"));
      show(i, true);
    });
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const to = {
        ArrowRight: i === last ? 0 : i + 1,
        ArrowLeft: i === 0 ? last : i - 1,
        Home: 0,
        End: last,
        " ": i,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      history.replaceState(null, "", tabs[to].getAttribute("href"));
      show(to, true);
    });
  });
  addEventListener("hashchange", () => show(named(), false));

  // Sorting: every head of a sortable table gets a button.
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.trim();
    const plain = text.replace(/,(?=\d{3})/g, "").replace(/\s*%$/, "");
    return plain !== "" && Number.isFinite(Number(plain)) ? Number(plain) : text;
  };
  const compare = (a, b) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  all("table.sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort((a, b) => (falling && a[0] !== "" && b[0] !== "" ? -1 : 1) * compare(a[0], b[0]));
        body.append(...rows.map((pair) => pair[1]));
      });
    });
  });

  // Filters: what does not hold the text is hidden, and so is a block of nothing.
  all(".find").forEach((line) => {
    line.hidden = false;
    const input = line.querySelector("input");
    const told = line.querySelector("output");
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      const found = all(input.dataset.find);
      found.forEach((each) => {
        each.hidden = !each.dataset.name.toLowerCase().includes(wanted);
      });
      all(".block").forEach((block) => {
        block.hidden = !block.querySelector("figure:not([hidden])");
      });
      told.textContent = wanted ? `${found.filter((each) => !each.hidden).length} of ${found.length}` : "";
    });
  });

  // Tips: what a mark or a cell stands for, under the pointer.
  const tip = document.getElementById("tip");
  let pointed = null;
  const hideTip = () => {
    pointed = null;
    tip.hidden = true;
  };
  const placeTip = () => {
    if (!pointed) return;
    const at = pointed.getBoundingClientRect();
    const left = at.left + at.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    const above = at.top - tip.offsetHeight - 8;
    tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
  };
  const showTip = (element) => {
    pointed = element;
    tip.textContent = element.dataset.tip;
    tip.hidden = false;
    placeTip();
  };
  document.addEventListener("pointerover", (event) => {
    const element = event.target.closest("[data-tip]");
    if (element) showTip(element);
    else hideTip();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  addEventListener("scroll", placeTip, { passive: true, capture: true });

  // Spectra: the rank under the pointer, and the energy that it keeps.
  const data = JSON.parse(document.getElementById("data").textContent);
  all("#spectra figure").forEach((figure, i) => {
    const { ranks, plain, kept } = data[i];
    const svg = figure.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const read = figure.querySelector(".read");
    const usual = read.textContent;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 200;
      const full = ranks[ranks.length - 1];
      const wanted = ((x - 6) / 188) * full;
      let at = 0;
      ranks.forEach((rank, k) => {
        if (Math.abs(rank - wanted) < Math.abs(ranks[at] - wanted)) at = k;
      });
      const place = (6 + (188 * ranks[at]) / full).toFixed(1);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      const data = kept ? `, ${kept[at]} % on data` : "";
      read.textContent = `rank ${ranks[at]} keeps ${plain[at]} %${kept ? " plain" : " of the energy"}${data}`;
    });
    svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      read.textContent = usual;
    });
  });

  show(named(), false);
})();
