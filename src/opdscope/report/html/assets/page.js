"use strict";
// What every part of the page shares: the data, building elements from text only, theme, sorting. Text is never parsed as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
}

function shorten(text, limit) {
  return text.length > limit ? text.slice(0, limit - 1) + "…" : text;
}

function signed(value, digits = 2) {
  if (value === null || value === undefined) return "—";
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 ? "−" : "+") + text;
}

function significant(value, signs = true) {
  if (value === null || value === undefined) return "—";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e-4 && size < 1e4 ? String(Number(size.toPrecision(2))) : size.toExponential(1);
  return (value < 0 ? "−" : signs ? "+" : "") + text;
}

function withInterval(value, low, high, write = significant) {
  if (value === null || value === undefined) return "—";
  return low === null ? `${write(value)}, no interval` : `${write(value)} [${write(low)} to ${write(high)}]`;
}

// Whether an interval says which sign a number has.
function isSure(low, high) {
  return low !== null && high !== null && (low > 0 || high < 0);
}

const THEME_KEY = "opdscope-theme";

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  try { localStorage.setItem(THEME_KEY, name); } catch { /* a file opened from disk may have no storage */ }
}

function startTheme() {
  const select = document.getElementById("theme");
  try { select.value = localStorage.getItem(THEME_KEY) || ""; } catch { select.value = ""; }
  if (select.value) document.documentElement.dataset.theme = select.value;
  select.addEventListener("change", () => setTheme(select.value));
}

// Rows whose value is missing stay at the end in either direction.
function sortTable(table, column, kind, direction) {
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value;
  const compare = kind === "text" ? (a, b) => a.localeCompare(b) : (a, b) => Number(a) - Number(b);
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return direction * compare(x, y);
  });
  body.append(...rows);
}

function startSorting() {
  for (const table of document.querySelectorAll("table.sorted")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button.sort");
      if (!button) return;
      button.addEventListener("click", () => {
        const first = button.dataset.kind === "text" ? "ascending" : "descending";
        const now = head.getAttribute("aria-sort");
        const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
        for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", next);
        sortTable(table, column, button.dataset.kind, next === "ascending" ? 1 : -1);
      });
    });
  }
}

// On paper everything that can be folded is open.
function startPrinting() {
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) { details.open = true; opened.push(details); }
  });
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });
}

startTheme();
startSorting();
startPrinting();
