//! As much of XML as introspection data has: tags and their attributes.

/// The value of an attribute of an XML tag.
pub fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// The opening tags of an XML document, in order, comments left out.
pub fn tags(xml: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        let end = if rest.starts_with("<!--") { rest.find("-->") } else { rest.find('>') };
        let end = end.expect("every tag ends");
        if rest.as_bytes().get(1).is_some_and(u8::is_ascii_alphabetic) {
            tags.push(&rest[1..end]);
        }
        rest = &rest[end..];
    }
    tags
}

/// The names of the nodes below.
pub fn children(xml: &str) -> Vec<&str> {
    let nodes = tags(xml).into_iter().filter(|tag| tag.starts_with("node "));
    nodes.filter_map(|tag| attribute(tag, "name")).collect()
}
