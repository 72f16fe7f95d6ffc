"""The style and the script of a listing: the same in each page."""

from __future__ import annotations

STYLE = """\
h1 i { margin: 0 .35em; color: var(--soft); font-style: normal; font-weight: 400 }
bdi { white-space: pre-wrap }
table { width: 100%; border-collapse: collapse }
th { padding: 0; border-bottom: 1px solid var(--line); color: var(--soft); font-size: .85rem;
  font-weight: 500; text-align: left; white-space: nowrap }
th a { display: block; padding: .4rem .75rem; color: inherit }
th a:hover { color: var(--text); text-decoration: none }
th[aria-sort=ascending] a::after { content: " \\2191"; content: " \\2191" / "" }
th[aria-sort=descending] a::after { content: " \\2193"; content: " \\2193" / "" }
td { padding: .45rem .75rem; border-bottom: 1px solid var(--line) }
tbody tr:hover { background: var(--over) }
td:first-child { overflow-wrap: anywhere }
td:first-child a { display: flex; gap: .6rem }
td:first-child a::before { content: ""; flex: none; width: 1rem; margin-top: .25rem; height: 1rem;
  background: var(--soft); -webkit-mask: var(--icon) center / contain no-repeat;
  mask: var(--icon) center / contain no-repeat; --icon: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='none' \
stroke='%23000' stroke-width='1.3' d='M3.2 1.7h6l3.6 3.6v9H3.2zM9 1.7v3.8h3.8'/%3E%3C/svg%3E") }
.d td:first-child a::before { background: var(--folder); --icon: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath \
d='M1 3.2c0-.6.4-1 1-1h4l1.6 1.9H14c.6 0 1 .4 1 1v7.7c0 .6-.4 1-1 1H2c-.6 0-1-.4-1-1z'\
/%3E%3C/svg%3E") }
.n { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap }
td.n:nth-child(2), th:nth-child(2) { text-align: right }
th:first-child { width: 100% }
nav, [role=search] { display: flex; gap: .25rem 1.25rem; margin: .75rem; font-size: .85rem;
  color: var(--soft) }
nav { flex-wrap: wrap }
[role=search] { align-items: center }
[role=search] span { flex: none; min-width: 8.5rem }
input { flex: 0 1 20rem; min-width: 0; padding: .3rem .6rem; border: 1px solid var(--soft);
  border-radius: .4rem; color: var(--text); background: none; font: inherit; font-size: 1rem }
::placeholder { color: var(--soft); opacity: 1 }
[hidden] { display: none !important }
th:nth-child(2) { min-width: 6.5rem }
th:nth-child(3) { min-width: 10.5rem }
@media (max-width: 36rem) {
  table, thead, tbody { display: block }
  thead tr { display: flex; border-bottom: 1px solid var(--line) }
  th:nth-child(n) { min-width: 0; border: 0 }
  th:first-child { flex: 1 }
  tbody tr { display: grid; grid-template-columns: 1fr auto; padding: .55rem .75rem;
    border-bottom: 1px solid var(--line) }
  td { padding: 0; border: 0 }
  td:first-child { grid-column: 1 / 3 }
  td.n { font-size: .8rem; padding-left: 1.6rem }
  td.n:nth-child(2), th:nth-child(2) { order: 1 }
}
"""

# Without it the page has all entries, and times in UTC. It stands before the rows, so that they
# don't move when the box appears. Upper case has one form of each letter, where lower case has two
# of the Greek sigma.
SCRIPT = """\
{
  const bar = document.querySelector("[role=search]");
  const [box, shown] = [bar.querySelector("input"), bar.querySelector("span")];
  const fold = (text) => text.toUpperCase().normalize("NFC");
  const filter = () => {
    const [rows, text] = [document.querySelectorAll("tbody tr"), fold(box.value)];
    let count = 0;
    for (const row of rows) {
      row.hidden = !fold(row.cells[0].textContent).includes(text);
      count += !row.hidden;
    }
    shown.textContent = text && `${count} of ${rows.length} shown`;
  };
  box.addEventListener("input", filter);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) {
      box.value = "";
      filter();
    }
  });
  bar.hidden = false;
  document.addEventListener("DOMContentLoaded", () => {
    if (box.value) filter();
    for (const time of document.querySelectorAll("time")) {
      const utc = new Date(time.dateTime);
      const local = new Date(utc - utc.getTimezoneOffset() * 60000);
      time.textContent = local.toISOString().slice(0, -8).replace("T", " ");
    }
    document.querySelector("th:last-child a").textContent = "Modified";
  });
}
"""
