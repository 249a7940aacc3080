"""The report page and its parts; read by tracetool.report only."""
