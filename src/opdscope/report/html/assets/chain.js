"use strict";
// The chain view: one question at a time, its paths as text, and the candidates of the token that is chosen.
const CHAINS = DATA.chains;
const chosen = { question: 0, teacher: 0, outcome: "", node: null };

const GAIN = 0, SCORE = 3, Q = 6, PUSH = 7; // places in a node's numbers of one teacher
const numbersOf = (node) => node.teachers[chosen.teacher];

// The largest gain of this teacher in the file makes the strongest shade, so that shades can be compared between questions.
function largestGain() {
  let largest = 0;
  for (const question of CHAINS.questions) for (const path of question.paths) for (const node of path.nodes) {
    largest = Math.max(largest, Math.abs(numbersOf(node)?.[GAIN] ?? 0));
  }
  return largest;
}

function signOf(value, sure) {
  if (!value) return "·";
  return value > 0 ? (sure ? "▲" : "△") : sure ? "▼" : "▽";
}

function tokenText(text) {
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥") || "∅";
}

function nodeButton(path, node, largest) {
  const numbers = numbersOf(node);
  const [value, low, high] = numbers ? numbers.slice(GAIN, GAIN + 3) : [null, null, null];
  const sure = isSure(low, high), text = path.tokens[node.position];
  const said = numbers ? `natural gain ${withInterval(value, low, high)}${sure ? "" : ", sign not settled"}` : "not measured for this teacher";
  const kind = value === null || value === 0 ? "" : value > 0 ? " pos" : " neg";
  const made = element("button", {
    type: "button", class: `tok node${kind} ${sure ? "sure" : "unsure"}`, title: said, "aria-pressed": "false",
    "aria-label": `${tokenText(text)} at position ${node.position}: ${said}`, onclick: () => showNode(path, node, made),
  }, tokenText(text), element("span", { class: "sign", "aria-hidden": "true" }, signOf(value, sure)));
  made.style.setProperty("--size", largest ? (0.12 + 0.68 * Math.sqrt(Math.abs(value ?? 0) / largest)).toFixed(3) : "0.12");
  return made;
}

function pathBlock(path, largest) {
  const at = new Map(path.nodes.map((node) => [node.position, node]));
  const tokens = element("div", { class: "tokens", role: "group", "aria-label": `Path ${path.rollout}, ${path.outcome}` });
  let plain = "";
  path.tokens.forEach((text, position) => {
    if (!at.has(position)) { plain += text; return; }
    if (plain) tokens.append(element("span", { class: "tok" }, plain));
    plain = "";
    tokens.append(nodeButton(path, at.get(position), largest));
  });
  if (plain) tokens.append(element("span", { class: "tok" }, plain));
  const right = path.outcome === "correct" ? "✓" : "✗";
  return element("div", { class: `path ${path.outcome}` }, element("h3", {}, `${right} Path ${path.rollout} · ${path.outcome} · ${path.tokens.length} tokens, ${path.nodes.length} measured`), tokens);
}

function drawChain() {
  const question = CHAINS.questions[chosen.question], largest = largestGain();
  const paths = question.paths.filter((path) => !chosen.outcome || path.outcome === chosen.outcome);
  const prompts = element("details", { class: "prompts" }, element("summary", {}, "What student and teachers were shown"),
    ...question.prompts.flatMap(([name, prompt]) => [element("h4", {}, name), element("pre", { tabindex: "0" }, prompt)]));
  const panel = document.getElementById("node"); // it lies beside the path of the token that is chosen, and outlives the paths
  document.getElementById("chains").append(panel);
  document.getElementById("chain").replaceChildren(
    element("p", { class: "question" }, element("b", {}, "Question "), question.text),
    element("p", { class: "answer" }, element("b", {}, "Answer "), question.answer),
    prompts,
    ...(paths.length ? paths.map((path) => pathBlock(path, largest)) : [element("p", {}, "This question has no measured path with that outcome.")]));
  closeNode();
  document.getElementById("previous").disabled = chosen.question === 0;
  document.getElementById("next").disabled = chosen.question === CHAINS.questions.length - 1;
}

function closeNode() {
  for (const button of document.querySelectorAll(".tok.node[aria-pressed='true']")) button.setAttribute("aria-pressed", "false");
  chosen.node = null;
  document.getElementById("node").replaceChildren();
}

// A bar from the middle: left is down, right is up.
function bar(kind, value, largest) {
  const axis = element("div", { class: "axis", "aria-hidden": "true" });
  if (value && largest) {
    const made = element("div", { class: `bar ${kind}` }), size = (50 * Math.abs(value)) / largest;
    made.style.width = `${size}%`;
    made.style.left = `${value > 0 ? 50 : 50 - size}%`;
    axis.append(made);
  }
  return axis;
}

function pairCell(ideal, push, largestIdeal, largestPush) {
  return element("td", {}, element("div", { class: "pair" },
    bar("ideal", ideal[0], largestIdeal), element("span", { title: `ideal ${withInterval(...ideal)}` }, `g* ${significant(ideal[0])}`),
    bar("push", push, largestPush), element("span", {}, `d ${significant(push)}`)));
}

function samplesCell(stratum) {
  if (!stratum.samples.length) return element("td", {}, "—");
  return element("td", {}, element("details", {}, element("summary", {}, `${stratum.samples.length} shown`),
    element("ul", { class: "samples" }, ...stratum.samples.map(([outcome, text]) =>
      element("li", {}, element("span", { class: "outcome" }, `${outcome}: `), element("span", { class: "literal" }, text))))));
}

function stratumRow(stratum, q, push, largestIdeal, largestPush) {
  const share = (value) => significant(value, false);
  const count = stratum.count === null ? "ends the response" : `${stratum.count[0]} of ${stratum.count[1]} correct`;
  return element("tr", {},
    element("th", { scope: "row" }, element("span", { class: "literal" }, stratum.tail ? stratum.text : tokenText(stratum.text)), stratum.taken ? " (taken)" : ""),
    element("td", { class: "num" }, share(stratum.p)), element("td", { class: "num" }, share(q)),
    element("td", { class: "num" }, withInterval(...stratum.success, share), element("br"), element("span", { class: "interval" }, count)),
    pairCell(stratum.ideal, push, largestIdeal, largestPush), samplesCell(stratum));
}

function showNode(path, node, button) {
  const again = chosen.node === node;
  closeNode();
  if (again) return;
  chosen.node = node;
  button.setAttribute("aria-pressed", "true");
  button.closest(".path").after(document.getElementById("node"));
  const teacher = DATA.teachers[chosen.teacher].name, numbers = numbersOf(node);
  const largest = (values) => Math.max(0, ...values.map((value) => Math.abs(value ?? 0)));
  const largestIdeal = largest(node.strata.map((stratum) => stratum.ideal[0])), largestPush = largest(numbers ? numbers[PUSH] : []);
  const rows = node.strata.map((stratum, k) => stratumRow(stratum, numbers?.[Q][k] ?? null, numbers?.[PUSH][k] ?? null, largestIdeal, largestPush));
  const said = numbers
    ? `natural gain ${withInterval(...numbers.slice(GAIN, GAIN + 3))}, alignment score ${withInterval(...numbers.slice(SCORE, SCORE + 3))}`
    : "this teacher was not measured here";
  const heads = ["candidate", "p, student", "q, teacher", "success, with interval", "ideal g* and push d", "continuations"];
  document.getElementById("node").replaceChildren(
    element("h3", {}, `Path ${path.rollout}, position ${node.position}: `, element("span", { class: "literal" }, tokenText(path.tokens[node.position]))),
    element("p", {}, element("b", { class: "name" }, teacher), `: ${said}. Student entropy ${significant(node.entropy, false)} nats.`),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Candidates" },
      element("table", {}, element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))), element("tbody", {}, ...rows))),
    element("p", { class: "hint" }, `Solid bar: ideal gradient g*; hatched bar: the teacher's push d (${DATA.settings.objective.replace(/_/g, " ")}). To the right raises the token. ` +
      "Each is drawn relative to its own largest at this node. Continuations start with the candidate and are the student's own; at most " +
      `${CHAINS.samples} are kept, one of each outcome first, cut after ${CHAINS.clipped} characters.`));
}

function step(by) {
  const next = chosen.question + by;
  if (next < 0 || next >= CHAINS.questions.length) return;
  chosen.question = next;
  document.getElementById("question").value = String(next);
  drawChain();
}

// Arrow keys go from one measured token of a path to the next; Escape closes what is open.
function moveAlong(event) {
  if (event.key === "Escape" && chosen.node) closeNode();
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by || !event.target.classList.contains("node")) return;
  const nodes = [...event.target.parentElement.querySelectorAll(".tok.node")];
  nodes[nodes.indexOf(event.target) + by]?.focus();
  event.preventDefault();
}

function startChains() {
  const label = (question) => `${question.id} · ${question.success === null ? "?" : Math.round(100 * question.success)} % correct · ${shorten(question.text.replace(/\s+/g, " "), 60)}`;
  fillSelect(document.getElementById("question"), CHAINS.questions.map((question, i) => [i, label(question)]));
  fillSelect(document.getElementById("teacher"), CHAINS.teachers.map((name, i) => [i, shorten(name, 60)]));
  const outcomes = [...new Set(CHAINS.questions.flatMap((question) => question.paths.map((path) => path.outcome)))];
  fillSelect(document.getElementById("outcome"), [["", "all outcomes"], ...outcomes.map((outcome) => [outcome, outcome])]);
  // it opens at a question that shows both outcomes, if there is one
  chosen.question = Math.max(0, CHAINS.questions.findIndex((question) => new Set(question.paths.map((path) => path.outcome)).size > 1));
  document.getElementById("question").value = String(chosen.question);
  const listen = (id, change) => document.getElementById(id).addEventListener("change", (event) => { change(event.target.value); drawChain(); });
  listen("question", (value) => { chosen.question = Number(value); });
  listen("teacher", (value) => { chosen.teacher = Number(value); });
  listen("outcome", (value) => { chosen.outcome = value; });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("chain").addEventListener("keydown", moveAlong);
  drawChain();
}

if (CHAINS && CHAINS.questions.length) startChains();
