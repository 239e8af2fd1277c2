"""`python -m promptrollout.gateway.openapi`: write the copy in docs/."""

import orjson

from promptrollout.gateway.openapi.document import DOCS_COPY, document

DOCS_COPY.write_bytes(orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
