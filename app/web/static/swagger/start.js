// In a file of its own, so that the page needs no inline script.
SwaggerUIBundle({
  url: "/schema/openapi.json",
  dom_id: "#schema",
  deepLinking: true,
  validatorUrl: null, // the default asks a stranger's server
  presets: [SwaggerUIBundle.presets.apis],
})
