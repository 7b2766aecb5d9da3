"""Where class texts come from: corpora, dictionaries, descriptions, taxonomies, templates and Wikipedia."""
