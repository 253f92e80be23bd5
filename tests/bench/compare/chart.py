"""The chart of a comparison: each engine's share of the machine's limit, as one SVG."""
from html import escape

COLOURS = {"winnow FULL": "#1b6ca8", "llama.cpp": "#c8553d", "llama.cpp flash": "#e3a587",
           "transformers": "#8a9a5b", "vLLM": "#7d5ba6",
           "vLLM compiled": "#b8a3d1"}
WIDTH, LEFT, BAR, GAP, PAD = 860, 250, 13, 12, 40
STYLE = ("<style>text{font:12px sans-serif;fill:#222}.t{font-weight:bold;font-size:14px}"
         ".l{stroke:#999;stroke-width:1}.g{stroke:#ccc;stroke-width:1}"
         "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#444}}</style>")


def text(x, y, words, anchor="start", kind=""):
    return (f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
            f'{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>')


def bars(group, y, scale):
    """One load: its name, and a bar for each engine with the share at its end."""
    title, shares = group
    out = [text(LEFT - 10, y + BAR * len(shares) / 2 + 4, title, "end")]
    for engine, share in shares:
        length = max(1, share * scale)
        out.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" '
                   f'fill="{COLOURS.get(engine, "#888")}"/>')
        out.append(text(LEFT + length + 5, y + BAR - 4, f"{100 * share:.0f} %"))
        y += BAR
    return out, y + GAP


def panel(title, groups, y, scale):
    out = [text(LEFT, y, title, kind="t")]
    y += 14
    top = y
    for group in groups:
        drawn, y = bars(group, y, scale)
        out += drawn
    for percent in (0, 50, 100):
        x = LEFT + scale * percent / 100
        out.insert(0, f'<line x1="{x:.0f}" y1="{top}" x2="{x:.0f}" y2="{y - GAP}" class="g"/>')
    return out, y + PAD - GAP


def legend(y):
    out, x = [], LEFT
    for engine, colour in COLOURS.items():
        out.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colour}"/>')
        out.append(text(x + 16, y, engine))
        x += 30 + 7 * len(engine)
    return out


def draw(panels):
    """panels: (title, [(load, [(engine, share of the limit), ...]), ...]), ..."""
    most = max([1.0, *(share for _, groups in panels for _, shares in groups
                       for _, share in shares)])
    scale = (WIDTH - LEFT - 60) / most
    body, y = legend(24), 60
    for title, groups in panels:
        drawn, y = panel(title, groups, y, scale)
        body += drawn
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" '
            f'width="{WIDTH}" height="{y:.0f}">{STYLE}\n' + "\n".join(body) + "\n</svg>\n")
