"use strict";
// The course of a training run: a line with its band, what rules did, and what the probe set found.
function drawCourse(series, size) {
  const points = series.points.filter((point) => point.value !== null);
  const banded = points.filter((point) => point.low !== null && point.low !== undefined);
  const probes = DATA.probes.filter((probe) => probe[series.name] && probe[series.name].value !== null).map((probe) => ({ step: probe.step, ...probe[series.name] }));
  const sounded = probes.filter((probe) => probe.low !== null && probe.high !== null);
  const crosses = points.some((point) => point.value < 0 || (point.low ?? 0) < 0);
  const plot = Plot.plot({
    ...size, marginLeft: 58, marginBottom: 40, style: { color: "var(--text)" },
    x: { label: "step", labelAnchor: "center" },
    y: { label: null, grid: true, nice: true, ticks: 5 },
    marks: [
      crosses ? Plot.ruleY([0], { stroke: "var(--text)", strokeOpacity: 0.6 }) : null,
      Plot.areaY(banded, { x: "step", y1: "low", y2: "high", fill: "var(--accent)", fillOpacity: 0.18 }),
      Plot.lineY(points, { x: "step", y: "value", stroke: "var(--accent)", strokeWidth: 2 }),
      points.length === 1 ? Plot.dot(points, { x: "step", y: "value", fill: "var(--accent)" }) : null,
      Plot.ruleX(DATA.actions, { x: "step", stroke: "var(--neg)", strokeDasharray: "4 3", title: (action) => `${action.rule}: ${action.before} → ${action.after}` }),
      Plot.ruleX(sounded, { x: "step", y1: "low", y2: "high", stroke: "var(--text)" }),
      Plot.dot(probes, { x: "step", y: "value", symbol: "diamond", r: 5, fill: "var(--page)", stroke: "var(--text)", strokeWidth: 1.5 }),
    ],
  });
  const last = points.at(-1);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", last ? `${series.title} from step ${points[0].step} to ${last.step}: ${significant(points[0].value)} to ${significant(last.value)}` : `${series.title}: undefined`);
  for (const part of plot.querySelectorAll("g[aria-label]")) part.removeAttribute("aria-label"); // a picture has one name
  document.getElementById(`series-${series.name}`).replaceChildren(plot);
}

for (const series of DATA.series) drawCourse(series, { width: 920, height: 230 });
for (const series of DATA.trends) drawCourse(series, { width: 400, height: 190 });
