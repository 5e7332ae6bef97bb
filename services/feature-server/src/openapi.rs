//! `GET /openapi.json`: what the lookups take and answer, made of the types that they are.

use axum::Json;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::lookup::LookupResponse;
use crate::request::LookupRequest;

/// OpenAPI 3.1, whose schemas are JSON Schema 2020-12.
pub(crate) async fn document() -> Json<Value> {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let request = schemas.subschema_for::<LookupRequest>();
    let response = schemas.subschema_for::<LookupResponse<'_>>();
    let json_body = |schema: Value| json!({ "application/json": { "schema": schema } });
    let error = |description: &str, schema: Value| json!({ "description": description, "content": json_body(schema) });
    let exception = json!({
        "type": "string",
        "description": "A text that is JSON itself: `module`, `class` and `message` of an exception of Feast's, which its client raises"
    });
    let message = json!({ "type": "string" });
    let invalid = json!({
        "type": "object",
        "properties": { "detail": { "type": "array", "items": {
            "type": "object",
            "properties": {
                "type": { "type": "string" },
                "loc": { "type": "array", "items": { "type": "string" } },
                "msg": { "type": "string" }
            },
            "required": ["type", "loc", "msg"]
        } } },
        "required": ["detail"]
    });
    let text =
        |description: &str| json!({ "description": description, "content": { "text/plain": { "schema": message } } });
    Json(json!({
        "openapi": "3.1.0",
        "info": { "title": "fraudline", "version": env!("CARGO_PKG_VERSION"), "description": "Features by entity" },
        "paths": {
            "/get-online-features": { "post": {
                "summary": "Feature lookup, as Feast's feature server answers it",
                "operationId": "get_online_features",
                "requestBody": { "required": true, "content": json_body(request.to_value()) },
                "responses": {
                    "200": { "description": "The features", "content": json_body(response.to_value()) },
                    "400": error("The lookup makes no sense", message.clone()),
                    "404": error("The definitions have no such view or feature service", exception),
                    "422": error("The body is no lookup", invalid),
                    "500": error("The store's values can't be read", message.clone()),
                    "503": error("The store is away", message.clone())
                }
            } },
            "/health": { "get": { "summary": "Whether the process answers", "responses": { "200": text("It does") } } },
            "/ready": { "get": { "summary": "Whether it does its work", "responses": {
                "200": text("It does"), "503": text("Not yet, and why")
            } } },
            "/metrics": { "get": { "summary": "Metrics of Prometheus", "responses": { "200": text("Its text format") } } }
        },
        "components": { "schemas": schemas.take_definitions(true) }
    }))
}
