"""How notebooks 70, 95 and 96 become pages: without code, and with all that it shows
inside.
"""

from pathlib import Path

c = get_config()  # noqa: F821
c.NbConvertApp.export_format = "html"
c.TemplateExporter.exclude_input = c.TemplateExporter.exclude_output_prompt = True
c.TemplateExporter.extra_template_basedirs = [str(Path(__file__).resolve().parent)]
c.TemplateExporter.template_name = "page"
c.HTMLExporter.embed_images = True
c.HTMLExporter.mathjax_url = c.HTMLExporter.require_js_url = c.HTMLExporter.jquery_url = ""
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_cell_tags = ["notebook"]  # what only who runs it wants to know
