// The disk: draws the scene and the marks of page.py, names what the pointer is on, and tells which
// node was clicked. A node's angle keeps subtrees side by side, its radius is the norm of its text, and
// edges are geodesics of the Poincare disk of radius 1.
const SVG = "http://www.w3.org/2000/svg", R = 262, ROOM = 380;
const NOTES = {  // by the kind of the model's head
  poincare: "",
  euclidean: "A flat space has no rim: radii are norms in proportion, edges straight lines.",
  cosine: "This head reads by angle: every text and every image has norm 1 and none has a depth. "
    + "All levels share the one circle; lines only join parent and child.",
};

// The drawn radius of a norm. In a ball: tanh(stretch artanh(sqrt(r) norm)), which scales the distance from
// the centre; a stretch of 1 draws norms as they are, less makes room between deep points. In a flat space:
// in proportion, the rim being twice the largest radius of the head. At norm 1 for a head by angle.
export const radius = (head, norm, stretch) => {
  if (head.kind === "cosine") return 0.8 * norm;
  if (head.kind === "euclidean") return norm / (2 * Math.max(head.image_radius, head.text_radius, head.top_radius));
  const share = Math.min(Math.sqrt(head.curvature) * norm, 1 - 1e-9);
  return Math.min(Math.tanh(stretch * Math.atanh(share)), 0.999);
};

// Radius and sweep, as in SVG's elliptical arc, of the geodesic from p to q. It lies on the circle orthogonal
// to the rim, whose centre c solves <c, p> = (1 + |p|^2) / 2 and <c, q> = (1 + |q|^2) / 2, so that
// |c|^2 = 1 + radius^2. A radius of 0 is a straight line; sweep is 1 where the angle around c rises.
export const geodesic = ([px, py], [qx, qy]) => {
  const cross = px * qy - py * qx;
  if (Math.abs(cross) < 1e-6) return [0, 0];  // a diameter
  const a = (1 + px * px + py * py) / 2, b = (1 + qx * qx + qy * qy) / 2;
  const x = (a * qy - b * py) / cross, y = (b * px - a * qx) / cross;
  return [Math.hypot(px - x, py - y), (px - x) * (qy - y) > (py - y) * (qx - x) ? 1 : 0];
};

const put = (parent, tag, attributes, text) => {
  const element = parent.appendChild(document.createElementNS(SVG, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const line = (head, p, q) => {
  const [size, sweep] = head.kind === "poincare" ? geodesic(p, q) : [0, 0];
  const end = `${q[0] * R} ${q[1] * R}`;
  return `M${p[0] * R} ${p[1] * R}` + (size ? `A${size * R} ${size * R} 0 0 ${sweep} ${end}` : `L${end}`);
};
const short = (value) => Number(value.toFixed(4));
const colour = (family, families, light) => `hsl(${(360 * family) / families + 20} 65% ${light}%)`;

function render({ model, el }) {
  el.classList.add("hierclip-disk");
  el.style.cssText = `position:relative;background:#fff;width:100%`;
  const svg = put(el, "svg", { viewBox: `${-ROOM} ${-ROOM} ${2 * ROOM} ${2 * ROOM}`, width: "100%", style: "display:block" });
  const tip = el.appendChild(document.createElement("div"));
  tip.className = "hierclip-tip";
  tip.style.cssText = "position:absolute;display:none;pointer-events:none;background:#fff;color:#222;border:1px solid #888;"
    + "border-radius:4px;padding:4px 6px;font:12px sans-serif;z-index:9;max-width:200px;box-shadow:0 1px 4px #0004";
  const layers = Object.fromEntries(["tree", "labels", "marks"].map((name) => [name, put(svg, "g", { class: name })]));

  const show = (words, leaves, x, y) => {
    const images = model.get("images");
    tip.replaceChildren(document.createTextNode(words));
    const row = tip.appendChild(document.createElement("div"));
    for (const leaf of leaves) if (images[leaf])
      row.appendChild(Object.assign(document.createElement("img"), { src: images[leaf], height: 48, style: "margin:3px 3px 0 0" }));
    const scale = el.clientWidth / (2 * ROOM);
    tip.style.cssText += `;display:block;top:${(y + ROOM) * scale + 12}px;`
      + (x > 0 ? `left:auto;right:${(ROOM - x) * scale + 12}px` : `right:auto;left:${(x + ROOM) * scale + 12}px`);
  };
  const answer = (element, words, leaves, x, y) => {
    element.addEventListener("pointerenter", () => show(words, leaves, x, y));
    element.addEventListener("pointerleave", () => (tip.style.display = "none"));
  };

  const place = (norm, angle) => {
    const size = radius(model.get("scene").head, norm, model.get("stretch"));
    return [size * Math.cos(angle), size * Math.sin(angle)];
  };
  let points = [];  // of the nodes
  const edge = (k) => line(model.get("scene").head, points[k], points[model.get("scene").nodes[k].parent] ?? [0, 0]);

  const drawTree = () => {
    const { head, nodes, families } = model.get("scene");
    layers.tree.replaceChildren();
    tip.style.display = "none";  // what it named may be gone
    if (!nodes) return drawLevel();
    points = nodes.map(({ norm, angle }) => place(norm, angle));
    put(layers.tree, "circle", {
      r: R, fill: "#fafafa", stroke: "#999", "stroke-dasharray": head.kind === "poincare" ? "none" : "2 5",
    });
    nodes.forEach((node, k) => put(layers.tree, "path", {
      d: edge(k), fill: "none", stroke: colour(node.family, families, 72), "stroke-width": 1,
    }));
    put(layers.tree, "circle", { r: 3, fill: "#777" });
    nodes.forEach((node, k) => {
      const [x, y] = points[k].map((value) => value * R);
      const dot = put(layers.tree, "circle", {
        class: "node", "data-name": node.name, "data-level": node.level, cx: x, cy: y,
        fill: colour(node.family, families, 45), stroke: "#fff", "stroke-width": 0.7, style: "cursor:pointer",
      });
      const count = node.count > 1 ? `, ${node.count} leaves` : "";
      answer(dot, `${node.name}: level ${node.level}, norm ${short(node.norm)}${count}`, node.leaves, x, y);
      dot.addEventListener("click", () => model.send({ leaf: node.leaves[0], node: k }));
    });
    NOTES[head.kind].split(/(?<=[.:]) /).forEach((line, k) =>
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
    nodes.forEach((node, k) => {
      if (node.level !== level) return;
      const degrees = (node.angle * 180) / Math.PI, left = Math.cos(node.angle) < 0;
      const [x, y] = [Math.cos(node.angle) * R, Math.sin(node.angle) * R];
      put(layers.labels, "line", { x1: points[k][0] * R, y1: points[k][1] * R, x2: x * 1.015, y2: y * 1.015,
        stroke: colour(node.family, families, 45), "stroke-width": 0.5, "stroke-dasharray": "1 3", "pointer-events": "none" });
      put(layers.labels, "text", {
        transform: `translate(${x * 1.03} ${y * 1.03}) rotate(${left ? degrees + 180 : degrees})`,
        "text-anchor": left ? "end" : "start", dy: "0.35em", "font-size": size, fill: colour(node.family, families, 30),
      }, node.name.length > most ? `${node.name.slice(0, most - 1)}…` : node.name);
    });
  };

  const drawMarks = () => {  // the true path; clean in black, attacked in red: the image, its roll-ups, the nearest nodes
    const { head, nodes } = model.get("scene"), { path, states } = model.get("marks");
    layers.marks.replaceChildren();
    tip.style.display = "none";
    if (!nodes || !path) return;
    const draw = (d, more) => put(layers.marks, "path", { d, fill: "none", "pointer-events": "none", ...more });
    path.forEach((k) => draw(edge(k), { stroke: "#222", "stroke-width": 2.2, "stroke-opacity": 0.55 }));
    const paths = states.map(({ norms, angles }) => norms.map((norm, l) => place(norm, angles[l])));
    paths.slice(1).forEach((path, n) => draw(line(head, paths[n][0], path[0]), { stroke: "#d00000", "stroke-width": 2 }));
    states.forEach(({ norms, nodes: nearest }, n) => {
      if (n && n < states.length - 1) return;  // on the attack's way
      const ink = n ? "#d00000" : "#111", what = n ? "attacked" : "clean";
      nearest.forEach((k) => put(layers.marks, "circle", { class: `nearest-${what}`, cx: points[k][0] * R, cy: points[k][1] * R,
        r: n ? 8.5 : 6.5, fill: "none", stroke: ink, "stroke-width": 1.3, "pointer-events": "none" }));
      paths[n].slice(1).forEach((point, l) => draw(line(head, paths[n][l], point),
        { stroke: ink, "stroke-width": 1.2, "stroke-dasharray": "4 3" }));
      paths[n].map(([x, y], l) => [x * R, y * R, l]).reverse().forEach(([x, y, l]) => {
        const shape = l ? put(layers.marks, "rect", { x: x - 4.5, y: y - 4.5, width: 9, height: 9 })
          : put(layers.marks, "circle", { cx: x, cy: y, r: 8 });
        for (const [name, value] of Object.entries({ class: `point-${what}`, "data-level": l, fill: ink, stroke: "#fff", "stroke-width": 1.5 }))
          shape.setAttribute(name, value);
        answer(shape, `${what} image${l ? `, rolled up to level ${l}` : ""}: norm ${short(norms[l])}`, [], x, y);
      });
    });
  };

  svg.addEventListener("pointerleave", () => (tip.style.display = "none"));
  // All that arrived together is in the model before the first event, and events come in any order: marks of a new
  // scene must not be drawn on the points of the old one. So whichever comes first draws all that differs.
  const names = ["scene", "stretch", "level", "marks"];
  let drawn = {};
  const draw = () => {
    const now = Object.fromEntries(names.map((name) => [name, model.get(name)]));
    const differs = (name) => now[name] !== drawn[name];
    const anew = differs("scene") || differs("stretch");
    if (anew) drawTree();
    else if (differs("level")) drawLevel();
    if (anew || differs("marks")) drawMarks();
    drawn = now;
  };
  for (const name of names) model.on(`change:${name}`, draw);
  draw();
}

export default { render };
