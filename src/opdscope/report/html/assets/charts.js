"use strict";
// Charts over the summary's numbers, drawn by Observable Plot with colours that follow the theme. Shape or pattern always says what colour says.
const QUANTITIES = [
  ["gain_over_null", "gain over null", (t) => t.gain_over_null],
  ["natural_gain", "natural gain, with the null to beat", (t) => t.natural_gain],
  ["natural_gain_per_sqrt_kl", "natural gain per √KL", (t) => t.natural_gain_per_sqrt_kl],
  ["pooled_alignment", "pooled alignment score", (t) => t.split && t.split.all.pooled_alignment],
  ["mean_score", "mean of per-node cosines", (t) => t.split && t.split.all.mean_score],
  ["accuracy_gap", "accuracy gap (a cheap rival)", (t) => t.accuracy_gap],
];

const SPLITS = [
  ["natural_gain", "natural gain of a response"],
  ["gain_over_null", "gain over null of a response"],
  ["advantage", "teacher advantage per token"],
  ["pooled_alignment", "pooled alignment score"],
  ["mean_score", "mean of per-node cosines"],
];

const AXES = [
  ["depth", "depth (position in the response)"],
  ["entropy", "student entropy (nats)"],
  ["difficulty", "student's success on the question"],
];

const defined = (estimate) => estimate && estimate.value !== null;
const flat = (name, estimate) => ({ name, value: estimate.value, low: estimate.low ?? estimate.value, high: estimate.high ?? estimate.value });

function describe(rows) {
  return rows.map((row) => `${row.name}: ${withInterval(row.value, row.low, row.high, signed)}`).join("; ");
}

function labelled(plot, text) {
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", text);
  for (const part of plot.querySelectorAll("g[aria-label]")) part.removeAttribute("aria-label"); // a picture has one name
  return plot;
}

// Room for names at the left, and a scale on which each teacher has a line of its own.
function named(names, height) {
  const longest = Math.max(8, ...names.map((name) => Math.min(name.length, 34)));
  return {
    width: 920,
    height: 76 + height * names.length,
    marginLeft: 24 + 7.4 * longest,
    marginRight: 24,
    marginBottom: 56,
    y: { domain: names, label: null, tickFormat: (name) => shorten(name, 34), tickSize: 0 },
    style: { color: "var(--text)" },
  };
}

function drawForest() {
  const [key, label, get] = QUANTITIES.find(([key]) => key === document.getElementById("quantity").value);
  const shown = DATA.teachers.filter((t) => defined(get(t)));
  const rows = shown.map((t) => ({ ...flat(t.name, get(t)), isNull: t.is_null, sure: isSure(get(t).low, get(t).high) }));
  const bands = key === "natural_gain" ? shown.filter((t) => !t.is_null && t.null.name && defined(t.null.natural_gain)).map((t) => ({ ...flat(t.name, t.null.natural_gain), by: t.null.name })) : [];
  const plot = Plot.plot({
    ...named(rows.map((row) => row.name), 30),
    x: { label, grid: true, nice: true, labelAnchor: "center", labelOffset: 42 },
    marks: [
      Plot.barX(bands, { y: "name", x1: "low", x2: "high", fill: "var(--null)", fillOpacity: 0.3, insetTop: 3, insetBottom: 3 }),
      Plot.tickX(bands, { y: "name", x: "value", stroke: "var(--null)", strokeWidth: 2, strokeDasharray: "3 2" }),
      Plot.ruleX([0], { stroke: "var(--text)", strokeOpacity: 0.6 }),
      Plot.ruleY(rows, { y: "name", x1: "low", x2: "high", stroke: (row) => (row.isNull ? "var(--null)" : "var(--text)"), strokeWidth: 2 }),
      Plot.dot(rows, {
        y: "name", x: "value", r: 5.5, symbol: (row) => (row.isNull ? "square" : "circle"), stroke: (row) => (row.isNull ? "var(--null)" : "var(--text)"),
        fill: (row) => (row.isNull ? "var(--null)" : !row.sure ? "var(--page)" : row.value > 0 ? "var(--pos)" : "var(--neg)"),
        title: (row) => `${row.name}: ${withInterval(row.value, row.low, row.high, signed)}`,
      }),
    ],
    symbol: { type: "identity" },
    color: { type: "identity" },
  });
  document.getElementById("forest").replaceChildren(labelled(plot, `Teachers by ${label}. ${describe(rows)}`));
  document.getElementById("forest-caption").textContent =
    "Circles: teachers, filled where the interval excludes zero; squares: nulls." +
    (bands.length ? " Grey band with dashed tick: gain and interval of the null that the teacher has to beat, at the same size of push." : "");
}

function drawDumbbell() {
  const key = document.getElementById("split-quantity").value;
  const shown = DATA.teachers.filter((t) => t.split && (defined(t.split.correct[key]) || defined(t.split.incorrect[key])));
  const rows = shown.flatMap((t) => ["correct", "incorrect"].filter((paths) => defined(t.split[paths][key])).map((paths) => ({ ...flat(t.name, t.split[paths][key]), paths })));
  const links = shown.filter((t) => defined(t.split.correct[key]) && defined(t.split.incorrect[key])).map((t) => ({ name: t.name, a: t.split.correct[key].value, b: t.split.incorrect[key].value }));
  const side = (paths) => rows.filter((row) => row.paths === paths);
  const mark = (paths, dy, symbol, colour, fill) => [
    Plot.ruleY(side(paths), { y: "name", x1: "low", x2: "high", dy, stroke: colour, strokeWidth: 1.5 }),
    Plot.dot(side(paths), { y: "name", x: "value", dy, r: 5, symbol, stroke: colour, strokeWidth: 2, fill,
      title: (row) => `${row.name}, ${paths} paths: ${withInterval(row.value, row.low, row.high, signed)}` }),
  ];
  const plot = Plot.plot({
    ...named(shown.map((t) => t.name), 36),
    x: { label: SPLITS.find(([name]) => name === key)[1], grid: true, nice: true, labelAnchor: "center", labelOffset: 42 },
    marks: [
      Plot.ruleX([0], { stroke: "var(--text)", strokeOpacity: 0.6 }),
      Plot.ruleY(links, { y: "name", x1: "a", x2: "b", stroke: "var(--null)", strokeWidth: 5, strokeOpacity: 0.45 }),
      ...mark("correct", -6, "circle", "var(--pos)", "var(--pos)"),
      ...mark("incorrect", 6, "diamond", "var(--neg)", "var(--page)"),
    ],
  });
  const text = rows.map((row) => `${row.name}, ${row.paths}: ${withInterval(row.value, row.low, row.high, signed)}`).join("; ");
  document.getElementById("dumbbell").replaceChildren(labelled(plot, `Correct against incorrect paths. ${text}`));
}

const edge = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(2))));
const span = (bin) => (bin.low === bin.high ? edge(bin.low) : Number.isInteger(bin.low) && Number.isInteger(bin.high) ? `${bin.low}–${bin.high}` : `≤ ${edge(bin.high)}`);

function drawAxis(axis, label, teacher) {
  const bins = DATA.along[axis];
  const shape = { width: 380, height: 215, marginTop: 30, marginLeft: 54, marginBottom: 56, style: { color: "var(--text)" } };
  const x = { type: "point", domain: d3.range(bins.length), label: null, tickSize: 0, padding: 0.4, tickRotate: -35, tickFormat: (place) => span(bins[place]) };
  const gains = bins.flatMap((bin, place) => Object.entries(bin.natural_gain).filter(([, e]) => defined(e)).map(([name, e]) => ({ place, teacher: name, ...flat(name, e) })));
  const own = gains.filter((row) => row.teacher === teacher);
  const norms = bins.flatMap((bin, place) => (defined(bin.ideal_norm) ? [{ place, ...flat("", bin.ideal_norm) }] : []));
  const draw = (rows, others, title, marks) => Plot.plot({
    ...shape, x, y: { label: title, grid: true, nice: true, ticks: 5 },
    marks: [
      ...marks,
      Plot.line(others, { x: "place", y: "value", z: "teacher", stroke: "var(--null)", strokeOpacity: 0.55 }),
      Plot.ruleX(rows, { x: "place", y1: "low", y2: "high", strokeWidth: 2 }),
      Plot.line(rows, { x: "place", y: "value", strokeWidth: 2 }),
      Plot.dot(rows, { x: "place", y: "value", r: 4.5, fill: (row) => (isSure(row.low, row.high) ? "currentColor" : "var(--page)"), stroke: "currentColor",
        title: (row) => `${span(bins[row.place])}: ${withInterval(row.value, row.low, row.high)}` }),
    ],
    color: { type: "identity" },
  });
  const spoken = (rows) => rows.map((row) => `${span(bins[row.place])}: ${withInterval(row.value, row.low, row.high)}`).join("; ");
  const above = draw(own, gains.filter((row) => row.teacher !== teacher), "natural gain of a token", [Plot.ruleY([0], { strokeOpacity: 0.6 })]);
  const below = draw(norms, [], "‖g*‖", []);
  return element("div", {}, element("h3", {}, label),
    labelled(above, `Natural gain of ${teacher} against ${label}. ${spoken(own)}`), labelled(below, `Size of the ideal gradient against ${label}. ${spoken(norms)}`),
    element("p", { class: "hint" }, `nodes per bin: ${bins.map((bin) => bin.num_nodes).join(", ")}`));
}

function drawAlong() {
  const teacher = document.getElementById("along-teacher").value;
  const charts = AXES.filter(([axis]) => DATA.along[axis].length).map(([axis, label]) => drawAxis(axis, label, teacher));
  document.getElementById("along-charts").replaceChildren(...charts);
}

function startChart(select, options, draw) {
  fillSelect(select, options);
  select.addEventListener("change", draw);
  draw();
}

const KNOWN = QUANTITIES.filter(([, , get]) => DATA.teachers.some((t) => defined(get(t))));
if (KNOWN.length) startChart(document.getElementById("quantity"), KNOWN, drawForest);
else document.getElementById("forest").replaceChildren(element("p", {}, "Every number of every teacher is undefined: there is nothing to draw."));
if (DATA.has_targeted) startChart(document.getElementById("split-quantity"), SPLITS, drawDumbbell);
if (document.getElementById("along-charts")) {
  startChart(document.getElementById("along-teacher"), DATA.teachers.map((t) => [t.name, shorten(t.name, 60)]), drawAlong);
}
