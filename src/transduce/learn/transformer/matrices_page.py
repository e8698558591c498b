"""Attention as linked matrices: a page in which every cell shows the arithmetic that it came from."""

import math
from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from transduce.inference.explain_page import json_in_html
from transduce.learn.showing import Shown, page
from transduce.model import attention


def attention_page(
    q: Float[Tensor, "queries head_dim"],
    k: Float[Tensor, "keys head_dim"],
    v: Float[Tensor, "keys value_dim"],
    *,
    queries: Sequence[str],
    keys: Sequence[str],
    mask: Bool[Tensor, "queries keys"] | None = None,
    height: int = 640,
) -> Shown:
    """Equation 1 as matrices that can be pointed at, by mouse, finger or arrow keys.

    Raises ValueError if there are not as many names as rows.
    """
    if (len(queries), len(keys)) != (len(q), len(k)):
        raise ValueError(f"{len(q)} queries and {len(k)} keys got {len(queries)} and {len(keys)} names.")
    return page(
        attention_document(q, k, v, queries=queries, keys=keys, mask=mask), height=height, plain=_plain(q, k, v, mask)
    )


def attention_document(
    q: Float[Tensor, "queries head_dim"],
    k: Float[Tensor, "keys head_dim"],
    v: Float[Tensor, "keys value_dim"],
    *,
    queries: Sequence[str],
    keys: Sequence[str],
    mask: Bool[Tensor, "queries keys"] | None = None,
) -> str:
    """The page as one HTML document that needs nothing from outside."""
    output, weights = attention(q.double(), k.double(), v.double(), mask)
    scores = q.double() @ k.double().T / math.sqrt(q.size(-1))
    data = {
        "queries": list(queries),
        "keys": list(keys),
        "Q": _rows(q),
        "K": _rows(k),
        "V": _rows(v),
        "S": _rows(scores),
        "A": _rows(weights),
        "Z": _rows(output),
        "mask": None if mask is None else mask.tolist(),
    }
    return _DOCUMENT.replace("DATA", json_in_html(data))  # the name of a token may hold anything


def _rows(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in matrix.double().tolist()]


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
    output, weights = attention(q.double(), k.double(), v.double(), mask)
    pairs = zip(weights.tolist(), output.tolist(), strict=True)
    lines = [f"weights {[round(x, 2) for x in a]} -> {[round(x, 2) for x in z]}" for a, z in pairs]
    return "Attention, cell by cell; one line for each query:\n" + "\n".join(lines)


_DOCUMENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Attention, cell by cell</title><style>
body { font: 13px/1.4 system-ui, sans-serif; margin: 8px; color: #1f2328; background: #fff }
#all { display: flex; flex-wrap: wrap; gap: 14px 22px; align-items: flex-end }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: 3px }
table { border-collapse: collapse } th { font-weight: 400; padding: 1px 6px; text-align: right; white-space: nowrap }
thead th { text-align: center }
td { width: 42px; height: 24px; text-align: center; cursor: pointer; border: 1px solid #fff;
  font-variant-numeric: tabular-nums }
td:focus { outline: none } td.on { border: 2px solid #1f2328 } td.used { border: 2px solid #d1701c }
#sum { position: sticky; top: 0; z-index: 1; min-height: 4.4em; margin: 0 0 10px; padding: 6px 10px;
  background: #f4f5f7; border-left: 4px solid #1f2328;
  font-family: ui-monospace, monospace; white-space: pre-wrap }
p { margin: 0 0 10px }
</style></head><body>
<p>Point at a cell, or walk with the arrow keys. Its own border is black; what it was made of is orange.
Gray is below 0.</p>
<div id="sum" aria-live="polite"></div><div id="all"></div>
<script>
const d = DATA, n = d.K[0].length, root = Math.sqrt(n), cells = {};
const channels = m => m[0].map((_, i) => String(i));
const shown = [
  ["Q", "Q: what each query asks", d.queries, channels(d.Q), [123, 63, 160]],
  ["K", "K: what each key offers", d.keys, channels(d.K), [209, 112, 28]],
  ["S", "scores = Q K\\u1d40 / \\u221ad_k", d.queries, d.keys, [43, 108, 176]],
  ["A", "weights = softmax of each row", d.queries, d.keys, [43, 108, 176]],
  ["V", "V: what each key hands over", d.keys, channels(d.V), [31, 122, 83]],
  ["Z", "output = weights \\u00b7 V", d.queries, channels(d.Z), [31, 122, 83]]];
const word = s => "\\u201c" + s + "\\u201d";
const f = x => x === null ? "" : (x < 0 ? "\\u2212" : "") + Math.abs(x).toFixed(2);
const brackets = x => x < 0 ? "(" + f(x) + ")" : f(x);
const hidden = (i, j) => d.mask && !d.mask[i][j];
function explain(m, i, j) {
  const used = [];
  const say = {
    Q: () => "channel " + j + " of the query of " + word(d.queries[i]) + ": " + f(d.Q[i][j]),
    K: () => "channel " + j + " of the key of " + word(d.keys[i]) + ": " + f(d.K[i][j]),
    V: () => "channel " + j + " of the value of " + word(d.keys[i]) + ": " + f(d.V[i][j]),
    S: () => {
      d.Q[i].forEach((_, c) => used.push(["Q", i, c], ["K", j, c]));
      const terms = d.Q[i].map((x, c) => f(x) + " \\u00b7 " + brackets(d.K[j][c])).join(" + ");
      const dot = d.Q[i].reduce((s, x, c) => s + x * d.K[j][c], 0);
      return "how well what " + word(d.queries[i]) + " asks fits what " + word(d.keys[j]) +
        " offers\\n" + terms + " = " + f(dot) + "\\n" + f(dot) + " / \\u221a" + n + " = " + f(dot / root) +
        (hidden(i, j) ? "\\nbut the mask says no: minus infinity takes its place" : "");
    },
    A: () => {
      if (hidden(i, j)) { used.push(["S", i, j]); return "masked: e to the minus infinity is 0"; }
      const seen = d.S[i].map((s, c) => [s, c]).filter(([, c]) => !hidden(i, c));
      seen.forEach(([, c]) => used.push(["S", i, c]));
      const total = seen.reduce((s, [x]) => s + Math.exp(x), 0);
      return "the share of " + word(d.keys[j]) + " in what " + word(d.queries[i]) +
        " gets\\ne^" + f(d.S[i][j]) + " / (" +
        seen.map(([x]) => "e^" + f(x)).join(" + ") + ")\\n= " +
        f(Math.exp(d.S[i][j])) + " / " + f(total) + " = " + f(d.A[i][j]);
    },
    Z: () => {
      d.A[i].forEach((_, c) => used.push(["A", i, c], ["V", c, j]));
      return "channel " + j + " of what " + word(d.queries[i]) +
        " gets: a mean of that channel of all values\\n" +
        d.A[i].map((a, c) => f(a) + " \\u00b7 " + brackets(d.V[c][j])).join(" + ") + " = " + f(d.Z[i][j]);
    }};
  const text = say[m]();
  for (const cell of Object.values(cells)) cell.className = "";
  used.forEach(([a, b, c]) => { cells[a + "," + b + "," + c].className = "used"; });
  cells[m + "," + i + "," + j].className = "on";
  document.getElementById("sum").textContent = text;
}
for (const [m, title, rows, columns, color] of shown) {
  const figure = document.createElement("figure"), table = document.createElement("table");
  const caption = document.createElement("figcaption");
  caption.textContent = title; figure.append(caption, table);
  const most = Math.max(...d[m].flat().map(Math.abs)) || 1, head = table.createTHead().insertRow();
  for (const name of ["", ...columns]) {
    const th = document.createElement("th"); th.textContent = name; th.scope = "col"; head.append(th);
  }
  const body = table.createTBody();
  d[m].forEach((row, i) => {
    const line = body.insertRow(), th = document.createElement("th");
    th.textContent = rows[i]; th.scope = "row"; line.append(th);
    row.forEach((x, j) => {
      const td = line.insertCell();
      td.textContent = m === "S" && hidden(i, j) ? "\\u2212\\u221e" : f(x);
      td.tabIndex = 0; const strength = m === "S" && hidden(i, j) ? 0 : 0.55 * Math.abs(x) / most;
      td.style.background = "rgba(" + (x < 0 ? [138, 143, 152] : color) + "," + strength + ")";
      cells[m + "," + i + "," + j] = td;
      td.onmouseenter = td.onfocus = td.onclick = () => explain(m, i, j);
      td.onkeydown = e => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key];
        const next = step && cells[m + "," + (i + step[0]) + "," + (j + step[1])];
        if (next) { e.preventDefault(); next.focus(); }
      };
    });
  });
  document.getElementById("all").append(figure);
}
explain("S", 0, 0);
</script></body></html>
"""
