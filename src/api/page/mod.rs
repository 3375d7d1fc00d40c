//! `GET /`: the web page, which uses the public API as any client does, and `GET /page/...`, what it is made of. All of it
//! is in the binary and speaks to no other host.
//!
//! The page holds no secret and is open to everybody; what it asks for needs a key where the server has keys.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::LazyLock;

use actix_web::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    HeaderMap, IF_NONE_MATCH, VARY,
};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::Embed;
use sha2::{Digest, Sha256};

use super::ApiError;

/// The files as they are in the repository: no step builds them.
#[derive(Embed)]
#[folder = "src/api/page/assets/"]
struct Files;

/// The one file that is not below `/page/`.
const PAGE: &str = "index.html";
/// What each kind of file is; others are not served.
const MEDIA_TYPES: [(&str, &str); 4] = [
    (".html", "text/html; charset=utf-8"),
    (".css", "text/css; charset=utf-8"),
    (".js", "text/javascript; charset=utf-8"),
    (".svg", "image/svg+xml"),
];

/// One file, ready to be sent.
struct Asset {
    media_type: &'static str,
    plain: Bytes,
    compressed: Bytes,
    /// Of the plain content, in hexadecimal.
    hash: String,
}

/// All files by their paths, compressed when the first of them is asked for.
static ASSETS: LazyLock<BTreeMap<String, Asset>> = LazyLock::new(|| {
    let assets = Files::iter().filter_map(|path| {
        let (_, media_type) = MEDIA_TYPES
            .iter()
            .find(|(ending, _)| path.ends_with(ending))?;
        let plain = Bytes::from(Files::get(&path)?.data.into_owned());
        let asset = Asset {
            media_type,
            compressed: compressed(&plain).unwrap_or_else(|| plain.clone()),
            hash: Sha256::digest(&plain)[..16]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            plain,
        };
        Some((path.into_owned(), asset))
    });
    assets.collect()
});

fn compressed(plain: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// Everything from this server. The import map is the one script that stands in the page itself, and is named by its hash.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let page = ASSETS.get(PAGE).map_or(&b""[..], |asset| &asset.plain);
    let page = String::from_utf8_lossy(page);
    let hash = import_map(&page).map_or_else(String::new, |map| {
        format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(map)))
    });
    format!(
        "default-src 'none'; script-src 'self'{hash}; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The text between the tags of the page's import map.
fn import_map(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<script type=\"importmap\">")?;
    rest.split_once("</script>").map(|(map, _)| map)
}

/// The page.
pub async fn page(http: HttpRequest) -> Result<HttpResponse, ApiError> {
    send(http.headers(), PAGE)
}

/// What the page is made of.
pub async fn asset(http: HttpRequest, path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    match path.as_str() {
        PAGE => Err(ApiError::no_such_address()),
        path => send(http.headers(), path),
    }
}

fn send(asked: &HeaderMap, path: &str) -> Result<HttpResponse, ApiError> {
    let asset = ASSETS.get(path).ok_or_else(ApiError::no_such_address)?;
    let says = |name, text: &str| {
        let value = asked.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.split(',').any(|part| part.trim().starts_with(text)))
    };
    let packed = says(ACCEPT_ENCODING, "gzip");
    let form = if packed { "gzip" } else { "plain" };
    let tag = format!("\"{}-{form}\"", asset.hash);
    let unchanged = says(IF_NONE_MATCH, &tag) || says(IF_NONE_MATCH, &format!("W/{tag}"));
    let mut answer = match unchanged {
        true => HttpResponse::NotModified(),
        false => HttpResponse::Ok(),
    };
    answer
        .insert_header((ETAG, tag))
        // Kept, and asked about each time: another version of the server has other files under the same names.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((VARY, "accept-encoding"))
        .insert_header((CONTENT_SECURITY_POLICY, POLICY.as_str()));
    if unchanged {
        return Ok(answer.finish());
    }
    answer.insert_header((CONTENT_TYPE, asset.media_type));
    if packed {
        answer.insert_header((CONTENT_ENCODING, "gzip"));
        return Ok(answer.body(asset.compressed.clone()));
    }
    Ok(answer.body(asset.plain.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_that_is_imported_is_served() {
        let page = String::from_utf8_lossy(&ASSETS[PAGE].plain);
        let map: serde_json::Value = serde_json::from_str(import_map(&page).unwrap()).unwrap();
        let named: Vec<&str> = map["imports"]
            .as_object()
            .unwrap()
            .values()
            .map(|path| path.as_str().unwrap())
            .collect();
        assert!(named.len() > 4);
        for path in named {
            assert!(ASSETS.contains_key(&path["/page/".len()..]), "{path}");
        }
        assert!(POLICY.contains("'sha256-") && !POLICY.contains("unsafe"));
    }

    #[test]
    fn what_the_page_begins_with_is_small() {
        // Charts are drawn by a library that only the views with charts fetch.
        let first = ASSETS.iter().filter(|(path, _)| !path.contains("uplot"));
        let bytes: usize = first.map(|(_, asset)| asset.compressed.len()).sum();
        assert!((10_000..150_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn no_file_of_the_page_is_long() {
        for (path, asset) in ASSETS
            .iter()
            .filter(|(path, _)| !path.starts_with("vendor/"))
        {
            let text = String::from_utf8_lossy(&asset.plain);
            assert!(text.lines().count() <= 600, "{path}");
            assert!(
                !text.contains("innerHTML") && !text.contains("dangerously"),
                "{path}"
            );
        }
    }
}
