"""The frame of the HTML page, which needs no other file and no script."""

__all__ = ["PAGE"]

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{
  --page: #ffffff; --text: #1d2330; --soft: #5b6472; --line: #d9dee6; --band: #f2f5f9;
  --link: #0b5cad; --accent: #0072b2;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #14181f; --text: #e4e8ee; --soft: #a3adba; --line: #333b47; --band: #1e242d;
    --link: #7db8f0; --accent: #56b4e9;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif;
}}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }}
h2 {{
  font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line);
}}
h3 {{ font-size: 1.05rem; margin: 1.75rem 0 .5rem; }}
p, ul {{ margin: .6rem 0; max-width: 75ch; }}
ul {{ padding-left: 1.3rem; }}
li {{ margin: .3rem 0; }}
a {{ color: var(--link); }}
code {{ font-size: .92em; overflow-wrap: anywhere; }}
pre {{
  background: var(--band); padding: .75rem; overflow-x: auto; white-space: pre-wrap;
  font-size: .85rem; border-radius: 6px;
}}
.verdict {{
  border-left: 4px solid var(--accent); background: var(--band); padding: .5rem 1rem;
  border-radius: 0 6px 6px 0;
}}
.verdict p, .verdict ul {{ max-width: none; }}
nav {{ margin: 1.25rem 0; font-size: .95rem; }}
nav ul {{
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; max-width: none; padding: 0; list-style: none;
}}
nav li {{ margin: 0; }}
.title {{ font-weight: 600; margin-top: 1.5rem; }}
.note {{ color: var(--soft); font-size: .88rem; max-width: 110ch; }}
.scroll {{ overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }}
table {{
  border-collapse: separate; border-spacing: 0; font-size: .82rem; min-width: 100%;
  font-variant-numeric: tabular-nums;
}}
th, td {{ padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }}
td {{ white-space: nowrap; }}
thead th {{ background: var(--band); font-weight: 600; vertical-align: bottom; min-width: 3.5rem; }}
thead th.over {{ text-align: center; border-left: 1px solid var(--line); }}
th:first-child {{
  position: sticky; left: 0; z-index: 1; text-align: left; background: var(--page);
  border-right: 1px solid var(--line); white-space: nowrap;
}}
thead th:first-child {{ background: var(--band); }}
tbody th {{ font-weight: 500; }}
.group th:first-child {{
  position: static; background: var(--band); color: var(--soft); font-weight: 600; border-right: 0;
}}
.group span {{ position: sticky; left: .5rem; }}
tbody tr:last-child > * {{ border-bottom: 0; }}
figure {{ margin: 1.5rem 0; }}
figcaption {{ color: var(--soft); font-size: .88rem; margin-top: .4rem; max-width: 110ch; }}
.picture {{ background: #ffffff; padding: .5rem; }}
@media (max-width: 640px) {{
  body {{ padding: 1rem .75rem 3rem; font-size: 15px; }}
  h1 {{ font-size: 1.4rem; }}
  .verdict {{ padding: .4rem .75rem; }}
  th, td {{ padding: .25rem .4rem; }}
}}
.picture img {{ display: block; width: 100%; min-width: 720px; height: auto; margin: 0 auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<section class="verdict" aria-label="Verdict">
{verdict}
</section>
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
<main>
{body}
</main>
</body>
</html>
"""
"""With a title, the verdict, the items of the contents, and the rest."""
