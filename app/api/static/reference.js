// The reference page: Swagger UI over the service's own OpenAPI document. Nothing is fetched from elsewhere.

const { SwaggerUIBundle } = window;

SwaggerUIBundle({
  url: "docs/openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
  queryConfigEnabled: false,
  withCredentials: true,
});
