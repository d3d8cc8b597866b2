//! Where a request goes, and where a redirect leads. Pure.

use ::http::Uri;

/// The place of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) https: bool,
    /// A name, or an address without brackets.
    pub(super) host: String,
    /// As it was written: not every URL names one.
    pub(super) port: Option<u16>,
    /// Path and query, starting with `/`, fit for a request line.
    pub(super) path: String,
}

/// Where a `Location` leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    pub(super) place: Place,
    /// Whether it named no host, so that the declared header `Host` still fits.
    pub(super) relative: bool,
}

impl Place {
    /// The port to connect to.
    pub(super) fn port(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
    }

    /// What the header `Host` says.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }

    /// Where `location`, said at this place, leads; `None` if it is no URL of HTTP.
    pub(super) fn follow(&self, location: &str) -> Option<Redirect> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme = location.split_once("://").map(|(scheme, _)| scheme).filter(|scheme| is_scheme(scheme));
        if let Some(scheme) = scheme {
            let https = if scheme.eq_ignore_ascii_case("https") { Some(true) } else { None };
            let https = https.or(scheme.eq_ignore_ascii_case("http").then_some(false))?;
            let rest = &location[scheme.len() + 3..];
            return Some(Redirect { place: at_authority(https, rest)?, relative: false });
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Some(Redirect { place: at_authority(self.https, rest)?, relative: false });
        }
        let path = match location.chars().next() {
            None => self.path.clone(),
            Some('/') => location.to_owned(),
            Some('?') => format!("{}{location}", path_of(&self.path)),
            Some(_) => {
                let base = path_of(&self.path);
                format!("{}/{location}", &base[..base.rfind('/').unwrap_or_default()])
            }
        };
        Some(Redirect { place: Self { path: request_path(&path), ..self.clone() }, relative: true })
    }
}

/// `path`, as it was declared, as a request line can have it: from `/`, without fragment, everything else encoded.
pub(super) fn request_path(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let mut out = encode(&without_dots(path));
    if let Some(query) = query {
        out.push('?');
        out.push_str(&encode(query));
    }
    out
}

fn at_authority(https: bool, rest: &str) -> Option<Place> {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let uri: Uri = format!("http://{}/", &rest[..end]).parse().ok()?;
    let bare = uri.authority()?.as_str().rsplit('@').next()?;
    let port = match bare.strip_prefix(uri.host()?)? {
        "" | ":" => None,
        port => Some(port.strip_prefix(':')?.parse().ok()?),
    };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    (!host.is_empty()).then(|| Place { https, host, port, path: request_path(&rest[end..]) })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn path_of(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// Takes out `.` and `..`, which lead nowhere above the root.
fn without_dots(path: &str) -> String {
    let path = path.strip_prefix('/').unwrap_or(path);
    if !path.split('/').any(|part| part == "." || part == "..") {
        return format!("/{path}");
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let ends_in_directory = path.ends_with("/.") || path.ends_with("/..") || path == "." || path == "..";
    let slash = if ends_in_directory && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

/// Encodes what a request line must not have; what is encoded already stays.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(path: &str) -> Place {
        Place { https: false, host: "10.1.0.2".to_owned(), port: Some(8080), path: path.to_owned() }
    }

    #[test]
    fn a_declared_path_becomes_one_that_a_request_line_can_have() {
        for (declared, sent) in [
            ("/", "/"),
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a?b=c&d=/../e", "/a?b=c&d=/../e"),
            ("/a%20b/ü x", "/a%20b/%C3%BC%20x"),
            ("/a#fragment", "/a"),
            ("/a\r\nX: y", "/a%0D%0AX:%20y"),
            ("?q", "/?q"),
        ] {
            assert_eq!(request_path(declared), sent, "{declared:?}");
        }
    }

    #[test]
    fn a_redirect_leads_to() {
        for (from, location, authority, path, relative) in [
            ("/a/b?c", "/x", "10.1.0.2:8080", "/x", true),
            ("/a/b?c", "x?y", "10.1.0.2:8080", "/a/x?y", true),
            ("/a/b?c", "?z", "10.1.0.2:8080", "/a/b?z", true),
            ("/a/b?c", "", "10.1.0.2:8080", "/a/b?c", true),
            ("/a/b/", "../d/./e/..", "10.1.0.2:8080", "/a/d/", true),
            ("/a", "../../..", "10.1.0.2:8080", "/", true),
            ("/a", "//other:1/x", "other:1", "/x", false),
            ("/a", "HTTP://10.1.0.2/x", "10.1.0.2", "/x", false),
            ("/a", "http://[fd00::1]:81?q", "[fd00::1]:81", "/?q", false),
            ("/a", "/login?next=http://other/", "10.1.0.2:8080", "/login?next=http://other/", true),
        ] {
            let Redirect { place, relative: is_relative } = place(from).follow(location).expect(location);
            assert_eq!(
                (place.authority().as_str(), place.path.as_str(), is_relative),
                (authority, path, relative),
                "{from} {location}"
            );
        }
        assert!(place("/").follow("https://10.1.0.2/").is_some_and(|to| to.place.https && to.place.port() == 443));
        for location in ["ftp://10.1.0.2/", "http://", "http:///x", "//", "http://a b/", "http://a:b/"] {
            assert_eq!(place("/").follow(location), None, "{location}");
        }
    }

    proptest! {
        #[test]
        fn any_location_makes_a_request_path_or_nothing(path in ".{0,40}", location in ".{0,60}") {
            let from = place(&request_path(&path));
            prop_assert!(from.path.parse::<::http::uri::PathAndQuery>().is_ok(), "{:?}", from.path);
            if let Some(to) = from.follow(&location) {
                prop_assert!(to.place.path.starts_with('/'));
                prop_assert!(to.place.path.parse::<::http::uri::PathAndQuery>().is_ok(), "{:?}", to.place.path);
            }
        }
    }
}
