"""The look of the page: one palette for light, one for dark, one column of text."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --surface: #ffffff; --ink: #1b1f24; --muted: #5c6670; --grid: #e4e7ea; --tint: #f3f6f9;
  --baseline: #6b7480; --control: #a96a00; --afm: #0a67ad; --svd: #a83a80; --other: #1a7f5a;
  --weighted: #6247aa; --sequential: #0b7680; --scratch: #b0432a;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --surface: #14181c; --ink: #e7eaed; --muted: #9aa5b0; --grid: #2c333a; --tint: #1c2228;
    --baseline: #98a2ad; --control: #e2a33c; --afm: #5cb1ee; --svd: #e48ac0; --other: #4fc198;
    --weighted: #b5a1f2; --sequential: #54c4cd; --scratch: #f0937a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--surface); color: var(--ink); font: 1rem/1.55 var(--sans); }
main { max-width: 1152px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2 { font-family: var(--serif); line-height: 1.2; text-wrap: balance; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0; }
h2 { font-size: 1.55rem; font-weight: 600; margin: 0 0 16px; }
p { margin: 0 0 14px; max-width: 72ch; }
a { color: inherit; text-underline-offset: 3px; text-decoration-color: var(--muted); }
code { font: 0.92em/1.4 var(--mono); overflow-wrap: anywhere; }
.muted, .caption, .small { color: var(--muted); }
.small { font-size: 0.875rem; max-width: 90ch; }
.origin { color: var(--muted); font-size: 0.875rem; margin: 2px 0 0; }
.lead { font: 600 clamp(1.7rem, 4.2vw, 2.7rem)/1.18 var(--serif); margin: 28px 0 24px; max-width: 26em;
  text-wrap: balance; }
section { margin-top: 56px; padding-top: 28px; border-top: 1px solid var(--grid); }
nav { margin: 24px 0 0; font-size: 0.875rem; display: flex; flex-wrap: wrap; gap: 4px 18px; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 190px), 1fr));
  gap: 20px 28px; margin: 0 0 28px; }
.figures > div { border-top: 2px solid var(--ink); padding-top: 8px; }
.figures dt { font-size: 0.875rem; color: var(--muted); }
.figures dd { margin: 0; font-variant-numeric: tabular-nums; }
.figures .value { font-size: 1.5rem; line-height: 1.3; font-weight: 600; }
.figures .from { font-size: 0.875rem; color: var(--muted); }
.ships { border-left: 3px solid var(--afm); padding: 2px 0 2px 16px; margin: 0 0 14px; }
.ships p { margin: 0; }

.scroll { overflow-x: auto; margin: 0 0 14px; }
.scroll:focus-visible { outline: 2px solid var(--afm); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
.caption { font-size: 0.875rem; margin: 0 0 6px; }
th, td { padding: 6px 0 6px 15px; text-align: right; font-weight: 400; vertical-align: top;
  white-space: nowrap; }
th:first-child { padding-left: 8px; }
td:last-child, thead th:last-child { padding-right: 8px; }
.words { text-align: left; }
td.words { white-space: normal; }
.long { display: inline-block; max-width: 15em; white-space: normal; overflow-wrap: anywhere; }
td.words:not(:nth-child(2)) { min-width: 20ch; }
thead th { color: var(--muted); border-bottom: 1px solid var(--muted); vertical-align: bottom;
  white-space: normal; }
thead th:not(.words) { max-width: 11em; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
tbody + tbody .group th { padding-top: 18px; }
.group th { text-align: left; font-weight: 600; padding-left: 8px; }
tr.ships-row > * { background: var(--tint); font-weight: 600; }
.badge { font: 600 0.75rem/1 var(--sans); color: var(--surface); background: var(--afm); border-radius: 3px;
  padding: 2px 6px; margin-left: 8px; }
tr.note > td { border-top: 0; padding: 0 8px 6px 25px; color: var(--muted); text-align: left;
  font-size: 0.8125rem; line-height: 1.2; white-space: normal; }
tr.note.ships-row > td { font-weight: 400; }
.method::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 8px;
  border-radius: 2px; background: var(--other); }
.method-baseline::before { background: var(--baseline); }
.method-control::before { background: var(--control); }
.method-afm::before { background: var(--afm); }
.method-svd::before { background: var(--svd); }
.method-weighted::before { background: var(--weighted); }
.method-sequential::before { background: var(--sequential); }
.method-scratch::before { background: var(--scratch); }

.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr));
  gap: 36px 48px; margin: 0 0 28px; align-items: start; }
.columns > * { min-width: 0; }
figure { margin: 0; break-inside: avoid; }
figcaption { margin: 0 0 10px; }
figcaption p { color: var(--muted); font-size: 0.875rem; margin: 2px 0 0; }
.plot { display: block; width: 100%; max-width: 520px; height: auto; overflow: visible; }
.plot text { font-family: var(--sans); font-variant-numeric: tabular-nums; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }

.facts { display: grid; gap: 0; margin: 0; font-size: 0.875rem; }
.facts > div { display: grid; grid-template-columns: minmax(9em, 1fr) 2fr; gap: 16px; padding: 6px 8px;
  border-top: 1px solid var(--grid); }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
h3 { font-size: 1rem; margin: 0 0 8px; }
pre { background: var(--tint); padding: 14px 16px; margin: 0 0 20px; white-space: pre-wrap;
  overflow-wrap: anywhere;
  font: 0.84rem/1.5 var(--mono); border-radius: 4px; }
details { margin: 0 0 14px; }
summary { cursor: pointer; padding: 6px 0; }
details > .scroll, details > pre { margin-top: 8px; }
ul { margin: 0 0 14px; padding-left: 1.2em; max-width: 72ch; }

@media (max-width: 560px) {
  main { padding: 24px 16px 40px; }
  section { margin-top: 40px; padding-top: 22px; }
  .figures { grid-template-columns: 1fr 1fr; gap: 18px 20px; }
  .figures .value { font-size: 1.3rem; }
  .scroll > table { width: max-content; min-width: 100%; }
  td.words { max-width: 30ch; }
  tbody th[scope="row"] { position: sticky; left: 0; background: var(--surface); }
  tbody tr.ships-row th[scope="row"] { background: var(--tint); }
}
@media print {
  :root { color-scheme: light; --surface: #fff; --ink: #000; --muted: #444; --grid: #ccc; --tint: #f2f2f2;
    --baseline: #6b7480; --control: #a96a00; --afm: #0a67ad; --svd: #a83a80; --other: #1a7f5a;
    --weighted: #6247aa; --sequential: #0b7680; --scratch: #b0432a; }
  @page { margin: 14mm; }
  html { font-size: 11px; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table, .facts { font-size: 0.8rem; }
  th, td { padding: 4px 0 4px 8px; }
  .lead { font-size: 2.2rem; }
  .figures { grid-template-columns: repeat(auto-fit, minmax(110px, 1fr)); }
  .columns { grid-template-columns: 1fr 1fr; gap: 20px 28px; }
  section { margin-top: 24px; padding-top: 14px; }
  h2, h3, figcaption, .caption, thead { break-after: avoid; }
  tr { break-inside: avoid; }
  tr.note, tr.note > td { break-before: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
