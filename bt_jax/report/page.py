"""The HTML elements of the page, its frame, and its style sheet."""

import html

from bt_jax.report.formats import percent

HEAD = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
TITLE_END = " – bt_jax</title>"
COLOURS = 6  # --c0 ... --c5 in the style sheet


def document(title: str, sections: list[str]) -> str:
    """The whole HTML file."""
    return (
        f'{HEAD} content="width=device-width, initial-scale=1"><title>{esc(title)}{TITLE_END}'
        f"<style>{CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def is_document(content: bytes) -> bool:
    """Whether the bytes of a file are those of `document`."""
    head, end, _ = content.partition(b"</title>")
    return content.startswith(HEAD.encode()) and (head + end).endswith(TITLE_END.encode())


def section(title: str, body: str, lead: str = "") -> str:
    return f"<section><h2>{esc(title)}</h2>{f'<p>{lead}</p>' if lead else ''}{body}</section>"


def figure(title: str, body: str, caption: str, legend: list[str] = ()) -> str:
    items = "".join(f"<li>{item}</li>" for item in legend)
    below = f'<ul class="legend">{items}</ul>' if legend else ""
    return f"<figure><h3>{title}</h3>{body}{below}<figcaption>{caption}</figcaption></figure>"


def table(columns: list[str], rows: list[list[str]], kind: str = "") -> str:
    """A table of cells of HTML; the first cell of a row is its name."""
    top = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(value: float | None, row: str) -> str:
    """A share as percent, with a bar whose CSS class is `row`."""
    if value is None:
        return "–"
    width = 100 * min(max(value, 0), 1)
    return f'{percent(value)}<span class="bar"><i class="{row}" style="width:{width:.1f}%"></i></span>'


def swatch(i: int) -> str:
    """The short line of colour i in a legend."""
    return f'<i class="swatch" style="background:var(--c{i % COLOURS})"></i>'


def esc(value) -> str:
    """The value as text that is safe inside HTML."""
    return html.escape(str(value), quote=True)


CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1d232b;--quiet:#626c79;--line:#d5dae1;--good:#0b7a55;
--warn:#9a5b00;--bad:#c62a2a;--c0:#0b6bcb;--c1:#d9480f;--c2:#0f8a5f;--c3:#8a3ffc;--c4:#a67c00;--c5:#c2255c}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1a2027;--ink:#e4e8ee;--quiet:#98a3b1;--line:#343d48;
--good:#4fd1a0;--warn:#f0b454;--bad:#ff7b72;--c0:#6cb2ff;--c1:#ff9a5c;--c2:#4ed4a0;--c3:#c9a2ff;--c4:#e6c34a;
--c5:#ff8bb0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;-webkit-text-size-adjust:100%}
@media(max-width:480px){main section{padding:14px}}
main{max-width:1120px;margin:auto;padding:20px 16px 48px}
h1{font-size:1.9rem;line-height:1.15;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .4rem} h3{font-size:1rem;margin:0 0 .3rem} p{margin:.3rem 0 .8rem;max-width:75ch}
.kind{color:var(--quiet);margin:0} .quiet,figcaption{color:var(--quiet);font-size:.875rem}
.verdict{font-size:1.2rem;line-height:1.4;padding-left:14px;border-left:4px solid var(--good)} .note{padding-left:18px}
.verdict.plain{border-color:var(--line)} .verdict.warn{border-color:var(--warn)} .verdict.bad{border-color:var(--bad)}
.note.warn{color:var(--warn)} .note.bad{color:var(--bad)}
.facts{display:flex;flex-wrap:wrap;gap:10px 28px;margin:1rem 0} .facts dt{color:var(--quiet);font-size:.8rem}
.facts dd{margin:0;font-size:1.2rem;font-weight:600;font-variant-numeric:tabular-nums}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px;margin:16px 0}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:24px 28px}
.plots.small,.plots.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,280px),1fr))}
figure{margin:0;min-width:0} figcaption{margin-top:.4rem} svg{display:block;width:100%;height:auto;overflow:visible}
svg *{stroke-linejoin:round;stroke-linecap:butt} svg text{font-family:inherit!important}
.map{display:block;width:100%;aspect-ratio:1;image-rendering:pixelated;border:1px solid var(--line)}
.scale{display:flex;align-items:center;gap:6px;max-width:280px;margin:0 0 14px;font-size:.8rem;color:var(--quiet)}
.scale i{flex:1;height:10px;background:linear-gradient(90deg,rgb(28 126 214),rgb(28 126 214/0))}
.scale i.up{background:linear-gradient(270deg,rgb(232 89 12),rgb(232 89 12/0))}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(120px,1fr));gap:12px}
.pair{display:flex;gap:2px}
.pair img{flex:1;min-width:0;width:0;height:auto;image-rendering:pixelated;border-radius:2px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;padding:0;margin:.3rem 0;font-size:.875rem}
.swatch{display:inline-block;width:18px;height:3px;margin-right:6px;vertical-align:middle}
.wide{overflow-x:auto;margin:.4rem 0 1rem} table{border-collapse:collapse;width:100%;font-size:.95rem}
.even{table-layout:fixed}
th,td{text-align:left;padding:7px 14px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--quiet);font-weight:500;font-size:.85rem}
tbody th{font-weight:500} td{font-variant-numeric:tabular-nums}
.bar{display:block;height:6px;min-width:70px;border-radius:3px;background:var(--line);margin-top:4px}
.bar i{display:block;height:6px;border-radius:3px;background:var(--quiet)} .bar .trained{background:var(--c0)}
.words span{display:inline-block}
pre{background:var(--page);border:1px solid var(--line);border-radius:8px;padding:10px;margin:.3rem 0 1rem;
font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere;user-select:all}
.strip{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(80px,22%),1fr));gap:8px;margin:0 0 16px}
.strip figure{max-width:180px}
section>h3{margin-top:1.2rem} .twins{list-style:none;padding:0;margin:.3rem 0;font-size:.875rem;columns:280px 3;
column-gap:28px} .twins li{display:grid;grid-template-columns:8.5em 1fr 3em;align-items:center;gap:8px;padding:3px 0}
.twins b{font-weight:500} .twins span:last-child{text-align:right;font-variant-numeric:tabular-nums}
.twins .bar{margin:0}
.cloud{position:relative;width:100%;max-width:860px;aspect-ratio:1;margin:10px auto}
.cloud i{position:absolute;width:max(3.4%,15px);aspect-ratio:1;transform:translate(-50%,-50%);border-radius:2px;
background-origin:border-box;border:2px solid var(--frame,transparent)}
.cloud i:hover{transform:translate(-50%,-50%) scale(3);z-index:1}
.rows{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:14px 36px}
.near{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:4px}
.near div:first-child{padding-right:6px} .near div:first-child img{outline:2px solid var(--ink);outline-offset:1px}
.near img{display:block;width:100%;height:auto;border-radius:2px}
.near span{display:block;margin-top:3px;text-align:center;font-size:.75rem;color:var(--quiet);
font-variant-numeric:tabular-nums}
.heat{font-size:.75rem;width:auto} .heat th,.heat td{padding:3px 4px;border:1px solid var(--line)}
.heat td{text-align:center;min-width:25px} .heat thead th{vertical-align:bottom}
.heat thead span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:90px}
@media(max-width:480px){.heat{font-size:.66rem} .heat th,.heat td{padding:3px 1px} .heat td{min-width:22px}
.heat tbody th{max-width:66px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.cloud i{border-width:1px;width:17px}}
.confusion{max-width:500px} .mistakes{padding-left:18px;margin:.3rem 0} .swatch.thick{width:12px;height:12px}
code{overflow-wrap:anywhere} td code,tbody th code{white-space:nowrap} summary{cursor:pointer;padding:4px 0}
"""
