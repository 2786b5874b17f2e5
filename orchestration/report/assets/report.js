// Shows the values under the pointer. Text enters the page as text nodes only: a name is never parsed as HTML.
document.querySelectorAll('figure[data-chart]').forEach(function (figure) {
  var data = JSON.parse(figure.dataset.chart), svg = figure.querySelector('svg'), cross = svg.querySelector('.cross');
  var tip = document.createElement('div'); tip.className = 'tip'; tip.hidden = true; figure.appendChild(tip);
  var box = data.box, log = function (v, on) { return on ? Math.log(v) : v; };
  function position(v, a, from, to) {
    return from + (log(v, a[2]) - log(a[0], a[2])) / (log(a[1], a[2]) - log(a[0], a[2])) * (to - from);
  }
  function px(v) { return position(v, data.x, box[0], box[1]); }
  function py(v) { return position(v, data.y, box[3], box[2]); }
  function shortNumber(v) { return v === null ? '\u2013' : String(Number(v.toPrecision(4))); }
  function addLine(c, text) {
    var line = document.createElement('div');
    if (c !== null) { var dot = document.createElement('i'); dot.className = c; line.appendChild(dot); }
    line.appendChild(document.createTextNode(text)); tip.appendChild(line);
  }
  function hide() { tip.hidden = true; cross.style.opacity = 0; }
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('pointermove', function (event) {
    var area = svg.getBoundingClientRect(), home = figure.getBoundingClientRect(), scale = area.width / data.width;
    var mx = (event.clientX - area.left) / scale, my = (event.clientY - area.top) / scale, best = null;
    data.series.forEach(function (s) {
      s.x.forEach(function (x, i) {
        if (x === null || s.y[i] === null) { return; }
        var d = Math.abs(px(x) - mx) + (data.hover === 'point' ? Math.abs(py(s.y[i]) - my) : 0);
        if (!best || d < best.d) { best = {d: d, x: x, y: s.y[i], s: s}; }
      });
    });
    if (!best || (data.hover === 'point' && best.d > 24)) { hide(); return; }
    tip.replaceChildren();
    if (data.hover === 'point') {
      addLine(best.s.c, best.s.name); addLine(null, shortNumber(best.x) + ', ' + shortNumber(best.y));
    } else {
      addLine(null, shortNumber(best.x));
      data.series.forEach(function (s) {
        var i = s.x.indexOf(best.x); if (i >= 0) { addLine(s.c, s.name + '  ' + shortNumber(s.y[i])); }
      });
      cross.setAttribute('x1', px(best.x)); cross.setAttribute('x2', px(best.x)); cross.style.opacity = .5;
    }
    tip.hidden = false;
    var x = area.left - home.left + px(best.x) * scale;
    tip.style.left = (x > home.width / 2 ? x - tip.offsetWidth - 12 : x + 12) + 'px';
    tip.style.top = (area.top - home.top + 14) + 'px';
  });
});
