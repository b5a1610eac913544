"use strict";
// Draws the charts, and switches runs on and off in all that belongs to them.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const boxes = [...document.querySelectorAll(".legend input")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches; // there a finger scrolls the page
  const COLOURS = 8;
  const PRINTED = 325; // pixels of a chart's width, two of them beside each other on A4
  const options = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  const drawn = new Set();

  const isShown = (run) => boxes.some((box) => Number(box.value) === run && box.checked);

  function draw(plot, width) {
    const css = getComputedStyle(root);
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const { data, layout } = structuredClone(figures[plot.id]);
    for (const trace of data) {
      const own = colour(`run-${trace.meta % COLOURS}`);
      trace.line = { ...trace.line, color: own };
      trace.marker = { ...trace.marker, color: own };
      if (trace.fill) trace.fillcolor = `${own}30`;
      if (trace.type === "heatmap") trace.colorscale = [[0, colour("back")], [1, own]];
      trace.visible = isShown(trace.meta);
    }
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = {
        ...layout[name],
        gridcolor: colour("line"),
        linecolor: colour("line"),
        zerolinecolor: colour("line"),
        exponentformat: "power",
        showline: true,
      };
    }
    const label = { bgcolor: colour("raised"), bordercolor: colour("line"), namelength: -1 };
    Object.assign(layout, {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
      hoverlabel: { ...label, font: { color: colour("text") } },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") },
      dragmode: touch ? false : "zoom",
      uirevision: "kept", // zooming outlives a redrawing
      width,
    });
    Plotly.react(plot, data, layout, options);
    drawn.add(plot);
  }

  // What is folded away or hidden has no width, and is drawn once it is to be seen.
  const isOpen = (plot) => plot.closest("details:not([open]), [hidden]") === null;
  const drawAll = (width) => {
    for (const plot of document.querySelectorAll(".plot")) if (isOpen(plot)) draw(plot, width);
  };

  function showRuns() {
    for (const element of document.querySelectorAll("[data-run]"))
      element.hidden = !isShown(Number(element.dataset.run));
    const count = boxes.filter((box) => box.checked).length;
    document.getElementById("shown").textContent = `${count} of ${boxes.length}`;
  }
  function toggled() {
    showRuns();
    drawAll();
  }
  boxes.forEach((box) => box.addEventListener("change", toggled));
  for (const button of document.querySelectorAll("[data-all]"))
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.dataset.all === "1";
      toggled();
    });
  document.querySelector(".legend").addEventListener("submit", (event) => event.preventDefault());

  for (const slider of document.querySelectorAll(".slider")) {
    const steps = slider.dataset.steps.split(" ").map(Number);
    const input = slider.querySelector("input");
    const grids = slider.nextElementSibling.querySelectorAll("figure");
    input.addEventListener("input", () => {
      const step = steps[Number(input.value)];
      input.setAttribute("aria-valuetext", `step ${step}`);
      slider.querySelector("output").textContent = `step ${step}`;
      for (const grid of grids) {
        // Show each run's last grid up to this step.
        const pictures = [...grid.querySelectorAll("[data-step]")];
        const last = pictures.filter((picture) => Number(picture.dataset.step) <= step).pop();
        for (const picture of pictures) picture.hidden = picture !== last;
        grid.querySelector(".at").textContent = last ? `step ${last.dataset.step}` : "none yet";
      }
    });
  }

  for (const details of document.querySelectorAll("details"))
    details.addEventListener("toggle", () => {
      for (const plot of details.querySelectorAll(".plot"))
        if (isOpen(plot) && !drawn.has(plot)) draw(plot);
    });

  let folded = [];
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
    drawAll(PRINTED);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    for (const details of folded) details.open = false;
    drawAll();
  });
  dark.addEventListener("change", () => drawn.forEach((plot) => draw(plot)));

  showRuns();
  drawAll();
})();
