// The documentation of the HTTP interface, shown by Swagger UI from our own files.

const ui = globalThis.SwaggerUIBundle({
  url: document.getElementById("openapi").href,
  domNode: document.getElementById("docs"),
  deepLinking: true,
  // Its validator badge would ask another origin.
  validatorUrl: null,
});

export default ui;
