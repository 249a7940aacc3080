"use strict";
// Opens what a link points into, opens tables for printing, and draws the timeline. Everything else is plain HTML.
(() => {
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const box = target && target.closest("details");
    if (box && !box.open) {
      box.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  reveal();

  // Paper is light whatever the screen is.
  const PAPER = { "--bg": "#ffffff", "--line": "#dfe3ea", "--soft": "#555e6e" };
  const canvases = [];
  let closed = [], paper = false;
  const onto = (sheet) => {
    paper = sheet;
    for (const draw of canvases) draw();
  };
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
    onto(true);
  });
  addEventListener("afterprint", () => {
    for (const one of closed) one.open = false;
    closed = [];
    onto(false);
  });

  const HINT = "W S zoom · A D or arrows move · 0 shows all · Ctrl + wheel zooms · drag moves";
  const GUTTER = 118, AXIS = 22, NARROWEST_US = 5;

  const time = (us) => {
    const size = Math.abs(us);
    if (size < 1e3) return us.toFixed(0) + " µs";
    if (size < 1e7) return (us / 1e3).toFixed(size < 1e4 ? 3 : size < 1e6 ? 2 : 0) + " ms";
    return (us / 1e6).toFixed(2) + " s";
  };

  async function unpack(block) {
    const bytes = Uint8Array.from(atob(block), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Response(stream).arrayBuffer();
  }

  async function timeline(host) {
    const canvas = host.querySelector("canvas"), pointed = host.querySelector(".pointed");
    const data = JSON.parse(document.getElementById(host.dataset.block).textContent);
    if (typeof DecompressionStream === "undefined") {
      pointed.textContent = "This browser cannot unpack the timeline; the table below holds the longest slices.";
      return;
    }
    const buffer = await unpack(data.block);
    const total = data.lanes.reduce((sum, lane) => sum + lane[1], 0);
    const gaps = new Uint32Array(buffer, 0, total), names = new Uint8Array(buffer, 8 * total, total);
    const lengths = new Uint32Array(buffer, 4 * total, total), starts = new Float64Array(total);
    const first = [];
    let at = 0;
    for (const [, count] of data.lanes) {
      first.push(at);
      let end = 0;
      for (let i = at; i < at + count; i++) {
        starts[i] = end + gaps[i];
        end = starts[i] + lengths[i];
      }
      at += count;
    }
    first.push(at);

    const span = Math.max(1, data.span_us), lanes = data.lanes.length;
    const tints = [...new Set(data.names.map((n) => n[1]))], tint = data.names.map((n) => tints.indexOf(n[1]));
    let from = 0, to = span, top = 0, width = 0, height = 0, waiting = false;
    const rowHeight = () => Math.max(7, Math.min(22, (height - AXIS) / lanes));
    const after = (lane, us) => {
      let low = first[lane], high = first[lane + 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (starts[middle] + lengths[middle] <= us) low = middle + 1; else high = middle;
      }
      return low;
    };

    function draw() {
      waiting = false;
      const box = canvas.getBoundingClientRect(), ratio = Math.min(2, devicePixelRatio || 1);
      width = Math.floor(box.width);
      height = Math.floor(box.height);
      if (width <= GUTTER || height <= AXIS) return;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
      const colour = (name) => (paper ? PAPER[name] : style.getPropertyValue(name).trim());
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.fillStyle = colour("--bg");
      pen.fillRect(0, 0, width, height);
      const row = rowHeight(), plot = width - GUTTER, scale = plot / (to - from);
      top = Math.max(0, Math.min(top, lanes * row - (height - AXIS)));
      pen.font = "11px system-ui, sans-serif";
      pen.textBaseline = "middle";
      ticks(pen, colour, plot, scale);
      pen.save();
      pen.beginPath();
      pen.rect(0, AXIS, width, height - AXIS);
      pen.clip();
      const last = Math.min(lanes, Math.ceil((top + height - AXIS) / row));
      const every = Math.max(1, Math.ceil(13 / row));
      for (let lane = Math.floor(top / row); lane < last; lane++) {
        const y = AXIS + lane * row - top;
        if (lane % every === 0) {
          pen.fillStyle = colour("--soft");
          pen.fillText(data.lanes[lane][0], 4, y + row / 2, GUTTER - 10);
        }
        slices(pen, lane, y + 0.5, Math.max(1, row - 1), scale);
      }
      pen.restore();
    }

    function ticks(pen, colour, plot, scale) {
      const rough = (to - from) / Math.max(2, plot / 130), base = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((f) => f * base).find((s) => s >= rough);
      pen.strokeStyle = colour("--line");
      pen.fillStyle = colour("--soft");
      pen.lineWidth = 1;
      pen.beginPath();
      for (let us = Math.ceil(from / step) * step; us <= to; us += step) {
        const x = Math.round(GUTTER + (us - from) * scale) + 0.5;
        pen.moveTo(x, AXIS - 4);
        pen.lineTo(x, height);
        const said = time(us);
        pen.fillText(said, Math.min(x + 3, width - pen.measureText(said).width - 3), AXIS / 2);
      }
      pen.stroke();
    }

    // Slices below one pixel are merged: the colour of the largest share, as opaque as the pixel is covered.
    function slices(pen, lane, y, tall, scale) {
      const share = new Float64Array(tints.length);
      let pixel = -1;
      const flush = () => {
        if (pixel < 0) return;
        let best = 0, sum = 0;
        for (let k = 0; k < share.length; k++) {
          sum += share[k];
          if (share[k] > share[best]) best = k;
        }
        if (sum > 0) {
          pen.globalAlpha = Math.max(0.35, Math.min(1, sum));
          pen.fillStyle = tints[best];
          pen.fillRect(pixel, y, 1, tall);
        }
        share.fill(0);
        pixel = -1;
      };
      for (let i = after(lane, from); i < first[lane + 1] && starts[i] < to; i++) {
        const left = GUTTER + Math.max(0, (starts[i] - from) * scale);
        const right = GUTTER + (Math.min(to, starts[i] + lengths[i]) - from) * scale;
        if (right - left < 1) {
          const here = Math.floor(left);
          if (here !== pixel) { flush(); pixel = here; }
          share[tint[names[i]]] += Math.max(right - left, 0.02);
          continue;
        }
        flush();
        pen.globalAlpha = 1;
        pen.fillStyle = tints[tint[names[i]]];
        pen.fillRect(left, y, right - left - (right - left > 3 ? 0.5 : 0), tall);
        if (right - left > 46 && tall > 11) {
          pen.fillStyle = dark(tints[tint[names[i]]]) ? "#fff" : "#000";
          const letters = Math.floor((right - left - 8) / 6), said = data.names[names[i]][0];
          pen.fillText(said.length > letters ? said.slice(0, letters - 1) + "…" : said, left + 4, y + tall / 2);
        }
      }
      flush();
      pen.globalAlpha = 1;
    }

    const dark = (hex) => {
      const part = (i) => (parseInt(hex.slice(i, i + 2), 16) / 255) ** 2.2;
      return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5) < 0.179;
    };
    const redraw = () => {
      if (!waiting) {
        waiting = true;
        requestAnimationFrame(draw);
      }
    };
    const view = (a, b) => {
      const size = Math.min(span, Math.max(NARROWEST_US, b - a));
      from = Math.max(0, Math.min(a, span - size));
      to = from + size;
      redraw();
    };
    const zoom = (factor, share) => {
      const middle = from + (to - from) * share, size = (to - from) * factor;
      view(middle - size * share, middle + size * (1 - share));
    };
    const move = (share) => view(from + (to - from) * share, to + (to - from) * share);
    const shares = (event) => Math.max(0, Math.min(1, (event.offsetX - GUTTER) / Math.max(1, width - GUTTER)));

    const keys = {
      w: () => zoom(0.6, 0.5), s: () => zoom(1 / 0.6, 0.5), a: () => move(-0.2), d: () => move(0.2),
      arrowleft: () => move(-0.2), arrowright: () => move(0.2), 0: () => view(0, span),
      arrowup: () => { top -= 3 * rowHeight(); redraw(); }, arrowdown: () => { top += 3 * rowHeight(); redraw(); },
    };
    canvas.addEventListener("keydown", (event) => {
      const act = keys[event.key.toLowerCase()];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, shares(event));
    }, { passive: false });
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = [event.offsetX, event.offsetY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => { held = null; });
    canvas.addEventListener("pointercancel", () => { held = null; });
    canvas.addEventListener("pointermove", (event) => {
      if (held) {
        top -= event.offsetY - held[1];
        const share = (event.offsetX - held[0]) / Math.max(1, width - GUTTER);
        held = [event.offsetX, event.offsetY];
        move(-share);
        return;
      }
      pointed.textContent = said(event) || HINT;
    });
    canvas.addEventListener("pointerleave", () => { pointed.textContent = HINT; });
    function said(event) {
      const lane = Math.floor((event.offsetY - AXIS + top) / rowHeight());
      if (event.offsetX < GUTTER || event.offsetY < AXIS || lane < 0 || lane >= lanes) return "";
      const perPixel = (to - from) / Math.max(1, width - GUTTER), us = from + (event.offsetX - GUTTER) * perPixel;
      const i = after(lane, us - perPixel);
      if (i >= first[lane + 1] || starts[i] > us + perPixel) return "";
      const [name, , key] = data.names[names[i]];
      return data.lanes[lane][0] + " · " + time(lengths[i]) + " at " + time(starts[i]) + " · " + key + " · " + name;
    }
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    host.dataset.slices = String(total);
    canvases.push(draw);
    draw();
  }

  for (const host of document.querySelectorAll(".timeline")) timeline(host);
})();
