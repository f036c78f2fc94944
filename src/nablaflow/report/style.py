"""The report's style sheet: system fonts, light or dark as the reader's screen is set."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1c1f24; --muted: #6b717b; --line: #e5e6e8;
  --aligned: #0b7a5c; --wash: #eef7f3; --reference: #8a8f98; --tilt: #b7791f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f24; --ink: #e8eaed; --muted: #9aa1ac; --line: #2e343c;
    --aligned: #5fd3a6; --wash: #1b2b27; --reference: #878e99; --tilt: #e2b562;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-font-smoothing: antialiased;
}
main { max-width: 62rem; margin: 0 auto; padding: 5rem 1.5rem 6rem; }
header { margin-bottom: 3.5rem; }
h1 { font-size: 2.4rem; line-height: 1.15; letter-spacing: -0.025em; margin: 0 0 .6rem; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 4.5rem 0 1.25rem; }
h3 { font-size: 1rem; font-weight: 500; margin: 2.25rem 0 .75rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 44rem; }
.facts, .note, small, figcaption { color: var(--muted); }
.note { font-size: .92rem; }
.scroll { overflow-x: auto; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .2em; }
.lead { margin-bottom: 2.5rem; }
.formula { font-family: ui-serif, Georgia, "Times New Roman", serif; font-size: 1.1rem; }
.formula { margin: .9rem 0; padding-left: 1.1rem; border-left: .2rem solid var(--tilt); }
dl { margin: 0; max-width: 44rem; }
dt { font-weight: 600; margin-top: 1.1rem; scroll-margin-top: 1rem; }
dd { margin: .15rem 0 0; color: var(--muted); font-size: .92rem; }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .8rem 1rem; text-align: right; white-space: nowrap; }
thead th { font-size: .85rem; font-weight: 500; color: var(--muted); }
tbody tr { border-top: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 500; padding-left: 0; white-space: normal; }
tbody th small { display: block; font-weight: 400; font-size: .82rem; }
td.policy { background: var(--wash); color: var(--aligned); font-weight: 600; }
thead th.policy { background: var(--wash); color: var(--aligned); border-radius: .5rem .5rem 0 0; }
tbody tr:last-child td.policy { border-radius: 0 0 .5rem .5rem; }

.way { position: relative; height: 4.6rem; margin: 0 .45rem 2.5rem; }
.way .track, .way .gone { position: absolute; top: 2.2rem; height: .3rem; border-radius: 1rem; }
.way .track { left: 0; right: 0; background: var(--line); }
.way .gone { background: var(--aligned); }
.way .stop { position: absolute; top: 2.35rem; width: 0; }
.way .stop::before {
  content: ""; position: absolute; width: .9rem; height: .9rem; border-radius: 50%;
  left: -.45rem; top: -.45rem; background: currentColor; border: .16rem solid var(--paper);
}
.way .stop span {
  /* Shifted by its place, so that no label leaves the track at either end. */
  position: absolute; top: .7rem; transform: translateX(calc(-1 * var(--at)));
  white-space: nowrap; font-size: .82rem;
}
.way .policy span { top: -2.5rem; font-size: 1.05rem; font-weight: 600; }
.way .reference { color: var(--reference); }
.way .policy { color: var(--aligned); }
.way .tilt { color: var(--tilt); }

.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.pair figure, .curves figure { margin: 0; }
figcaption { font-size: .82rem; margin-bottom: .4rem; }
.pair figure + figure figcaption { color: var(--aligned); font-weight: 600; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .35rem; }
.sheet img { width: 100%; display: block; border-radius: .3rem; }
.sheet img.tiny { image-rendering: pixelated; }
.curves { display: grid; gap: 2rem; margin-top: 1.25rem; }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.curves img { width: 100%; max-width: 36rem; height: auto; display: block; }

pre {
  margin: 1rem 0; padding: 1.1rem 1.25rem; overflow-x: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem;
  font: .86rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre code { font: inherit; }
details { margin-top: 4.5rem; }
summary { cursor: pointer; font-size: 1.3rem; font-weight: 600; letter-spacing: -0.01em; }
@media (max-width: 40rem) {
  main { padding: 2.5rem 1rem 4rem; }
  h1 { font-size: 1.8rem; }
  /* A figure's name above its three values, so that the table is whole on a phone. */
  table, thead, tbody { display: block; }
  thead tr, tbody tr { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
  thead td { display: none; }
  tbody th { grid-column: 1 / -1; padding: .8rem 0 .1rem; }
  thead th, td { padding: .4rem .25rem .7rem; font-size: .8rem; text-align: center; }
  td.policy, thead th.policy, tbody tr:last-child td.policy { border-radius: .4rem; }
  .pair { gap: .75rem; }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(4rem, 1fr)); }
}
@media print { details { display: none; } h3, .pair { break-inside: avoid; } }
"""
