// The disk: draws what disk.py gives, names what the pointer is on, says which node was clicked.
const SVG = "http://www.w3.org/2000/svg", R = 262, ROOM = 380;

const put = (parent, tag, attributes, text) => {
  const element = parent.appendChild(document.createElementNS(SVG, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const way = ([x, y, u, v, radius, sweep]) =>
  `M${x * R} ${y * R}` + (radius ? `A${radius * R} ${radius * R} 0 0 ${sweep} ${u * R} ${v * R}` : `L${u * R} ${v * R}`);
const colour = (family, families, light) => `hsl(${(360 * family) / families + 20} 65% ${light}%)`;

function render({ model, el }) {
  el.classList.add("hierclip-disk");
  el.style.cssText = `position:relative;background:#fff;width:${model.get("width")}px`;
  const svg = put(el, "svg", { viewBox: `${-ROOM} ${-ROOM} ${2 * ROOM} ${2 * ROOM}`, width: "100%", style: "display:block" });
  const tip = el.appendChild(document.createElement("div"));
  tip.className = "hierclip-tip";
  tip.style.cssText = "position:absolute;display:none;pointer-events:none;background:#fff;color:#222;border:1px solid #888;"
    + "border-radius:4px;padding:4px 6px;font:12px sans-serif;z-index:9;max-width:200px;box-shadow:0 1px 4px #0004";
  const layers = Object.fromEntries(["tree", "labels", "marks"].map((name) => [name, put(svg, "g", { class: name })]));

  const show = (words, leaves, x, y) => {
    const pictures = model.get("pictures");
    tip.replaceChildren(document.createTextNode(words));
    const row = tip.appendChild(document.createElement("div"));
    for (const leaf of leaves) if (pictures[leaf])
      row.appendChild(Object.assign(document.createElement("img"), { src: pictures[leaf], height: 48, style: "margin:3px 3px 0 0" }));
    const scale = el.clientWidth / (2 * ROOM);
    tip.style.cssText += `;display:block;top:${(y + ROOM) * scale + 12}px;`
      + (x > 0 ? `left:auto;right:${(ROOM - x) * scale + 12}px` : `right:auto;left:${(x + ROOM) * scale + 12}px`);
  };
  const answer = (element, words, leaves, x, y) => {
    element.addEventListener("pointerenter", () => show(words, leaves, x, y));
    element.addEventListener("pointerleave", () => (tip.style.display = "none"));
  };

  const drawTree = () => {
    const { nodes, edges, families, rim, note } = model.get("scene");
    layers.tree.replaceChildren();
    tip.style.display = "none";  // what it named may be gone
    if (!nodes) return drawLevel();
    put(layers.tree, "circle", { r: R, fill: "#fafafa", stroke: "#999", "stroke-dasharray": rim ? "none" : "2 5" });
    edges.forEach((edge, k) => put(layers.tree, "path", {
      d: way(edge), fill: "none", stroke: colour(nodes[k].family, families, 72), "stroke-width": 1,
    }));
    put(layers.tree, "circle", { r: 3, fill: "#777" });
    nodes.forEach((node, k) => {
      const dot = put(layers.tree, "circle", {
        class: "node", "data-name": node.name, "data-level": node.level, cx: node.x * R, cy: node.y * R,
        fill: colour(node.family, families, 45), stroke: "#fff", "stroke-width": 0.7, style: "cursor:pointer",
      });
      const count = node.count > 1 ? `, ${node.count} leaves` : "";
      answer(dot, `${node.name}: level ${node.level}, norm ${node.norm}${count}`, node.leaves, node.x * R, node.y * R);
      dot.addEventListener("click", () => { model.set("clicked", k); model.save_changes(); });
    });
    note.split(/(?<=[.:]) /).forEach((line, k) =>
      put(layers.tree, "text", { x: 10 - ROOM, y: 18 - ROOM + 14 * k, "font-size": 11, fill: "#444" }, line));
    drawLevel();
  };

  const drawLevel = () => {  // the chosen level: large dots, and names outside the rim, each at its node's angle
    const { nodes, families } = model.get("scene"), level = model.get("level");
    layers.labels.replaceChildren();
    if (!nodes) return;
    layers.tree.querySelectorAll(".node").forEach((dot, k) => dot.setAttribute("r", nodes[k].level === level ? 5 : 2.4));
    const chosen = nodes.filter((node) => node.level === level);
    const turns = chosen.map((node) => node.angle).sort((a, b) => a - b);
    const gaps = turns.map((turn, k) => (k ? turn - turns[k - 1] : turn + 2 * Math.PI - turns[turns.length - 1]));
    const room = (ROOM - 1.03 * R) / 0.54, longest = Math.max(...chosen.map((node) => node.name.length));  // a letter's width
    const size = Math.min(13, 0.95 * R * Math.min(...gaps), Math.max(8.5, room / longest)), most = Math.floor(room / size);
    if (size < 5) return;  // too many to be read: the pointer names them
    for (const node of chosen) {
      const degrees = (node.angle * 180) / Math.PI, left = Math.cos(node.angle) < 0;
      const [x, y] = [Math.cos(node.angle) * R, Math.sin(node.angle) * R];
      put(layers.labels, "line", { x1: node.x * R, y1: node.y * R, x2: x * 1.015, y2: y * 1.015,
        stroke: colour(node.family, families, 45), "stroke-width": 0.5, "stroke-dasharray": "1 3", "pointer-events": "none" });
      put(layers.labels, "text", {
        transform: `translate(${x * 1.03} ${y * 1.03}) rotate(${left ? degrees + 180 : degrees})`,
        "text-anchor": left ? "end" : "start", dy: "0.35em", "font-size": size, fill: colour(node.family, families, 30),
      }, node.name.length > most ? `${node.name.slice(0, most - 1)}…` : node.name);
    }
  };

  const drawMarks = () => {  // the true path; before in black, after in red: the picture, its roll-ups, the nearest nodes
    const { nodes, edges } = model.get("scene"), { path, states, moved } = model.get("marks");
    layers.marks.replaceChildren();
    tip.style.display = "none";
    if (!nodes || !path) return;
    const line = (edge, more) => put(layers.marks, "path", { d: way(edge), fill: "none", "pointer-events": "none", ...more });
    path.forEach((k) => line(edges[k], { stroke: "#222", "stroke-width": 2.2, "stroke-opacity": 0.55 }));
    moved.forEach((edge) => line(edge, { stroke: "#d00000", "stroke-width": 2 }));
    states.forEach(({ points, lines, norms, nodes: nearest }, n) => {
      const ink = n ? "#d00000" : "#111", what = n ? "attacked" : "clean";
      nearest.forEach((k) => put(layers.marks, "circle", { class: `nearest-${what}`, cx: nodes[k].x * R, cy: nodes[k].y * R,
        r: n ? 8.5 : 6.5, fill: "none", stroke: ink, "stroke-width": 1.3, "pointer-events": "none" }));
      lines.forEach((edge) => line(edge, { stroke: ink, "stroke-width": 1.2, "stroke-dasharray": "4 3" }));
      points.map(([x, y], l) => [x * R, y * R, l]).reverse().forEach(([x, y, l]) => {
        const shape = l ? put(layers.marks, "rect", { x: x - 4.5, y: y - 4.5, width: 9, height: 9 })
          : put(layers.marks, "circle", { cx: x, cy: y, r: 8 });
        for (const [name, value] of Object.entries({ class: `point-${what}`, "data-level": l, fill: ink, stroke: "#fff", "stroke-width": 1.5 }))
          shape.setAttribute(name, value);
        answer(shape, `${what} picture${l ? `, rolled up to level ${l}` : ""}: norm ${norms[l]}`, [], x, y);
      });
    });
  };

  svg.addEventListener("pointerleave", () => (tip.style.display = "none"));
  const redraw = { scene: [drawTree, drawMarks], level: [drawLevel], marks: [drawMarks] };
  for (const [name, draws] of Object.entries(redraw)) model.on(`change:${name}`, () => draws.forEach((draw) => draw()));
  drawTree();
  drawMarks();
}

export default { render };
