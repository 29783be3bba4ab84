const specs = JSON.parse(document.getElementById("charts").textContent);
const onDark = JSON.parse(document.getElementById("on-dark").textContent);
const darkness = window.matchMedia("(prefers-color-scheme: dark)");
function themed(spec) {
  let text = JSON.stringify(spec);
  if (darkness.matches)
    for (const [light, dark] of Object.entries(onDark)) text = text.split('"' + light + '"').join('"' + dark + '"');
  return JSON.parse(text);
}
function config() {
  const style = getComputedStyle(document.documentElement), get = n => style.getPropertyValue(n).trim();
  const ink = get("--ink"), soft = get("--soft"), line = get("--line");
  const font = getComputedStyle(document.body).fontFamily;
  const words = { labelColor: soft, titleColor: ink, labelFont: font, titleFont: font, labelFontSize: 12,
    titleFontSize: 12, titleFontWeight: 600 };
  return { background: "transparent", font, view: { stroke: "transparent" }, title: { color: ink },
    axis: { ...words, gridColor: line, domainColor: soft, tickColor: soft },
    legend: { ...words, symbolStrokeWidth: 2 }, header: { ...words }, text: { color: ink } };
}
function draw() {
  const jobs = Object.entries(specs).map(([name, spec]) =>
    vegaEmbed("#chart-" + CSS.escape(name), themed(spec), { config: config(), renderer: "svg", tooltip:
      { theme: darkness.matches ? "dark" : "light" }, downloadFileName: name,
      actions: { export: true, source: false, compiled: false, editor: false } }));
  return Promise.all(jobs).then(() => { document.body.dataset.drawn = jobs.length; });
}
darkness.addEventListener("change", draw);
draw();
