//! `GET /docs`: the API's description as a page to read and to try, without a word to any other host: Swagger UI's
//! script and style come with the binary, from the archive of its release in `utoipa-swagger-ui-vendored`.
//!
//! The page holds no secret and is open to everybody, as `/openapi.json` is; what it sends needs a key where the
//! server has keys, which is typed in under "Authorize".

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::LazyLock;

use actix_web::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

use super::ApiError;

/// Everything from this server; the script styles its elements one by one and its style holds small pictures.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The files of Swagger UI's release that the page uses.
const RELEASED: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui.css"];

type Assets = BTreeMap<&'static str, Bytes>;

/// Unpacked when they are first asked for.
static ASSETS: LazyLock<Result<Assets, String>> = LazyLock::new(unpack);

fn unpack() -> Result<Assets, String> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))
        .map_err(|error| format!("Swagger UI's archive: {error}"))?;
    let mut assets = Assets::new();
    assets.insert("start.js", Bytes::from_static(include_bytes!("start.js")));
    for name in RELEASED {
        // The archive has one directory, named after the release.
        let ending = format!("/dist/{name}");
        let path = archive
            .file_names()
            .flatten()
            .find(|path| path.ends_with(&ending))
            .map(|path| path.into_owned())
            .ok_or_else(|| format!("Swagger UI's archive has no {name}"))?;
        let mut content = Vec::new();
        archive
            .by_name(&path)
            .map_err(|error| format!("{path}: {error}"))?
            .read_to_end(&mut content)
            .map_err(|error| format!("{path}: {error}"))?;
        assets.insert(name, content.into());
    }
    Ok(assets)
}

/// The page.
pub async fn page() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .body(include_str!("page.html"))
}

/// What the page is made of.
pub async fn asset(name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let assets = ASSETS.as_ref().map_err(ApiError::internal)?;
    let Some(content) = assets.get(name.as_str()) else {
        return Err(ApiError::no_such_address());
    };
    let media_type = match name.ends_with(".css") {
        true => "text/css; charset=utf-8",
        false => "text/javascript; charset=utf-8",
    };
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, media_type))
        .body(content.clone()))
}
