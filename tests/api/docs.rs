//! The page that describes the API, which must work where there is no other host to ask.

use crate::client::Server;

/// The values of these attributes in a page.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let begins = format!(" {name}=\"");
    let values = page.split(&begins).skip(1);
    values.filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn the_page_is_made_of_what_this_server_has() {
    let server = Server::new();
    let front = server.get("/");
    assert!(attributes(&front.body, "href").contains(&"/docs"));
    let page = server.get("/docs");
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(server.get("/docs/").body, page.body);
    let scripts = attributes(&page.body, "src");
    let links = attributes(&page.body, "href");
    assert!(scripts.len() == 2 && links.len() == 2, "{}", page.body);
    let assets = scripts.iter().map(|script| (*script, "text/javascript"));
    let styles = links.iter().filter(|link| **link != "data:,");
    for (path, media_type) in assets.chain(styles.map(|style| (*style, "text/css"))) {
        let asset = server.get(path);
        assert_eq!(asset.status, 200, "{path}");
        assert_eq!(
            asset.headers["content-type"],
            format!("{media_type}; charset=utf-8")
        );
        assert_eq!(asset.headers["x-content-type-options"], "nosniff");
    }
    assert!(server.get(scripts[0]).body.contains("SwaggerUIBundle"));
    server
        .get("/docs/nothing.js")
        .is_error(404, None, Some("no_such_address"));
}

#[test]
fn the_page_asks_no_other_host() {
    let server = Server::new();
    let page = server.get("/docs");
    let start = server.get("/docs/start.js").body;
    for text in [&page.body, &start] {
        assert!(!text.contains("://"), "{text}");
        assert!(!text.contains("\"//"), "{text}");
    }
    // A browser follows no address in a style but these, and the policy holds for the script.
    let style = server.get("/docs/swagger-ui.css").body;
    let addresses = style.split("url(").skip(1);
    for address in addresses {
        let address = address.trim_start_matches(['"', '\'']);
        assert!(address.starts_with("data:"), "{address}");
    }
    assert!(!style.contains("@import"));
    let policy = &page.headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for directive in policy.split(';').skip(1) {
        for source in directive.split_whitespace().skip(1) {
            let own = ["'self'", "'none'", "'unsafe-inline'", "data:"];
            assert!(own.contains(&source), "{directive}");
        }
    }
    assert!(!policy.contains("script-src 'self' 'unsafe"), "{policy}");
}
