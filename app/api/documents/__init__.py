"""The OpenAPI document, and the reference page that shows it.

error_codes  every error code with its meaning and remedy; error_codes.toml is the table
components   the schemas that have a name in the document
operations   operation ids and who may call
document     puts the above into FastAPI's document
openapi_30   the document for tools that know OpenAPI 3.0 only, as Swagger UI 4 does
reference    GET /docs
"""
