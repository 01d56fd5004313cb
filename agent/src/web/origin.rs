//! Where a request comes from: the `Host` that it names, whether a page of ours sent it, and the headers that keep a browser from
//! doing with our answer what it should not.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// On every answer. Nothing comes from elsewhere, nothing inline runs, no frame shows us, no cache keeps us.
pub const HEADERS: [(HeaderName, HeaderValue); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    // Not no-referrer: with that a browser sends `Origin: null` with our own forms.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("permissions-policy"), HeaderValue::from_static("camera=(), microphone=(), geolocation=()")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Whether a page of ours sent this, as far as the browser says. A machine with a token sends neither header; a browser always one.
pub fn is_same(headers: &HeaderMap, machine: bool) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(&HeaderName::from_static("sec-fetch-site")) {
        // `none`: typed in by the person. No form is sent that way.
        return site == "same-origin";
    }
    match (text(&header::ORIGIN), text(&header::HOST)) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host)),
        (Some(_), None) => false,
        (None, _) => machine,
    }
}

/// Whether `Host` names this machine's loopback: a page elsewhere whose name was made to mean 127.0.0.1 names itself (DNS rebinding).
pub fn is_loopback_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|value| value.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_our_own_pages_may_post() {
        let host = ("host", "break.example:8443");
        for (all, machine, same) in [
            (vec![host, ("sec-fetch-site", "same-origin")], false, true),
            (vec![host, ("sec-fetch-site", "cross-site"), ("origin", "https://break.example:8443")], false, false),
            (vec![host, ("sec-fetch-site", "same-site")], false, false),
            (vec![host, ("sec-fetch-site", "none")], false, false),
            (vec![host, ("origin", "https://break.example:8443")], false, true),
            (vec![host, ("origin", "https://evil.example")], false, false),
            (vec![host, ("origin", "https://break.example:8443.evil.example")], false, false),
            (vec![host, ("origin", "null")], false, false),
            (vec![host, ("origin", "https://evil.example")], true, false),
            (vec![host], false, false),
            (vec![host], true, true),
        ] {
            assert_eq!(is_same(&headers(&all), machine), same, "{all:?} {machine}");
        }
    }

    #[test]
    fn another_name_for_loopback_is_not_loopback() {
        for (host, good) in [
            ("127.0.0.1:8102", true),
            ("localhost", true),
            ("[::1]:8102", true),
            ("127.0.0.1.evil.example:8102", false),
            ("evil.example", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(is_loopback_host(&headers(&[("host", host)])), good, "{host}");
        }
        assert!(!is_loopback_host(&HeaderMap::new()));
    }
}
