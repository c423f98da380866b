"use strict";
// The table of utterances: sorted, filtered and searched here, fifty rows at a time; a row opens to its audio.
const PAGE = 50;
const { columns, utterances } = JSON.parse(document.getElementById("data").textContent);
const head = document.querySelector("#table thead tr");
const body = document.querySelector("#table tbody");
const more = document.getElementById("more");
const search = document.getElementById("search");
const selects = [...document.querySelectorAll("select[data-filter]")];
const count = document.getElementById("count");
let sorted = { column: 0, descending: true };
let found = [];
let shown = 0;

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

columns.forEach((column, index) => {
  const button = element("button", { type: "button", textContent: column.name });
  button.addEventListener("click", () => {
    const again = sorted.column === index;
    sorted = { column: index, descending: again ? !sorted.descending : !column.text };
    refresh();
  });
  head.append(element("th", { scope: "col", className: column.minor ? "minor" : "" }, button));
});

function refresh() {
  const words = search.value.toUpperCase().split(/\s+/).filter(Boolean);
  const chosen = selects.map((select) => select.value);
  found = utterances.filter((utterance) =>
    words.every((word) => utterance.searched.includes(word)) &&
    chosen.every((value, index) => value === "" || utterance.filters[index].includes(value)));
  const value = (utterance) => utterance.cells[sorted.column];
  const sign = sorted.descending ? -1 : 1;
  found.sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
  [...head.children].forEach((cell, index) => cell.setAttribute(
    "aria-sort", index !== sorted.column ? "none" : sorted.descending ? "descending" : "ascending"));
  count.textContent = `${found.length} of ${utterances.length}`;
  body.replaceChildren();
  shown = 0;
  showMore();
}

function showMore() {
  found.slice(shown, shown + PAGE).forEach((utterance) => body.append(makeRow(utterance)));
  shown = Math.min(found.length, shown + PAGE);
  more.hidden = shown === found.length;
}

function makeRow(utterance) {
  const cells = columns.map((column, index) => {
    const value = utterance.cells[index];
    const text = column.text ? value : value === null ? "" : value.toFixed(column.digits) + (column.unit || "");
    const kinds = [column.text ? "" : "number", column.minor ? "minor" : "", column.long ? "long" : ""];
    return element("td", { className: kinds.join(" ").trim(), dir: "auto", textContent: text });
  });
  const row = element("tr", { className: "row", tabIndex: 0 }, ...cells);
  const toggle = () => {
    if (row.classList.toggle("open")) row.after(makeDetail(utterance));
    else row.nextSibling.remove();
  };
  row.addEventListener("click", toggle);
  row.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
  return row;
}

function makeDetail(utterance) {
  const cell = element("div");
  utterance.texts.forEach(({ name, steps }) => cell.append(element("small", { textContent: name }), align(steps)));
  utterance.notes.forEach((note) => cell.append(element("p", { textContent: note })));
  const audio = element("audio", { controls: true, preload: "none", src: utterance.audio });
  if (utterance.audio) cell.append(audio);
  if (utterance.words.length) cell.append(makeTimes(utterance.words, audio));
  if (utterance.picture) {
    const image = element("img", { src: utterance.picture, alt: "spectrogram and character probabilities" });
    cell.append(element("div", { className: "picture" }, image));
  }
  return element("tr", { className: "detail" }, element("td", { colSpan: columns.length }, cell));
}

function align(steps) {
  const parts = steps.map(([kind, said, written]) => element(
    "span", { className: kind, title: kind },
    element("b", { textContent: said || "·" }),
    element("small", { textContent: kind === "equal" ? "" : written || "·" })));
  return element("div", { className: "alignment", dir: "auto" }, ...parts);
}

function makeTimes(words, audio) {
  const buttons = words.map(([text, start, end]) => {
    const button = element("button", { type: "button", textContent: text, title: `${start} to ${end} s` });
    button.addEventListener("click", () => { audio.currentTime = start; audio.play(); });
    return button;
  });
  return element("div", { className: "times", dir: "auto" }, ...buttons);
}

more.addEventListener("click", showMore);
search.addEventListener("input", refresh);
selects.forEach((select) => select.addEventListener("change", refresh));
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
refresh();
