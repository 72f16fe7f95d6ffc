"""The style of a listing: the same in each page."""

from __future__ import annotations

STYLE = """\
h1 i { margin: 0 .35em; color: var(--soft); font-style: normal; font-weight: 400 }
bdi { white-space: pre-wrap }
table { width: 100%; border-collapse: collapse }
th { padding: 0; border-bottom: 1px solid var(--line); color: var(--soft); font-size: .85rem;
  font-weight: 500; text-align: left; white-space: nowrap }
th a { display: block; padding: .4rem .75rem; color: inherit }
th a:hover { color: var(--text); text-decoration: none }
th[aria-sort=ascending] a::after { content: " \\2191" }
th[aria-sort=descending] a::after { content: " \\2193" }
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
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem; font-size: .85rem;
  color: var(--soft) }
@media (max-width: 36rem) {
  table, thead, tbody { display: block }
  thead tr { display: flex; border-bottom: 1px solid var(--line) }
  th { border: 0 }
  th:first-child { flex: 1 }
  tbody tr { display: grid; grid-template-columns: 1fr auto; padding: .55rem .75rem;
    border-bottom: 1px solid var(--line) }
  td { padding: 0; border: 0 }
  td:first-child { grid-column: 1 / 3 }
  td.n { font-size: .8rem; padding-left: 1.6rem }
  td.n:nth-child(2), th:nth-child(2) { order: 1 }
}
"""
