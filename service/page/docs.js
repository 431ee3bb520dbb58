// The documentation of the HTTP API: Swagger UI, served from our own files.

const ui = globalThis.SwaggerUIBundle({
  url: document.getElementById("openapi").href,
  domNode: document.getElementById("docs"),
  deepLinking: true,
  // Without the validator badge, which would send a request to another origin.
  validatorUrl: null,
});

export default ui;
