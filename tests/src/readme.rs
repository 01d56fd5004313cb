//! README.md's commands, word for word: what the demonstration types and what a newcomer types can't drift apart.

const README: &str = include_str!("../../README.md");

/// The indented blocks below a heading, in order, without their indentation.
pub fn blocks(heading: &str) -> Vec<String> {
    let section = README.split("\n## ").find(|section| section.lines().next() == Some(heading)).unwrap_or_default();
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for line in section.lines() {
        match (line.strip_prefix("    "), line.is_empty()) {
            (Some(code), _) if inside => blocks.last_mut().into_iter().for_each(|block| *block += &format!("{code}\n")),
            (Some(code), _) => {
                blocks.push(format!("{code}\n"));
                inside = true;
            }
            // A blank line within a block does not end it.
            (None, true) if inside => blocks.last_mut().into_iter().for_each(|block| block.push('\n')),
            (None, _) => inside = false,
        }
    }
    blocks.into_iter().map(|block| block.trim_end().to_owned() + "\n").collect()
}

/// The block below a heading that has this in it.
///
/// # Errors
/// Where README.md has none: the demonstration then shows something that README.md does not say.
pub fn block_with(heading: &str, text: &str) -> crate::Result<String> {
    blocks(heading).into_iter().find(|block| block.contains(text)).ok_or_else(|| {
        crate::Error::new(format!("README.md has no block with `{text}` below `{heading}`"), "Put it back, or change what reads it with it")
    })
}

#[cfg(test)]
mod tests {
    use super::{block_with, blocks};

    #[test]
    fn a_block_keeps_its_own_indentation_and_its_blank_lines() {
        let drop_in = block_with("Install on a PVE host", "Match User breakglass").unwrap();
        assert!(drop_in.contains("\n    AuthorizedKeysFile /etc/pve-verb/authorized_keys\n"), "{drop_in}");
        assert!(drop_in.contains("END\nsshd -t && systemctl reload ssh\n"), "{drop_in}");
        assert!(blocks("No such heading").is_empty());
    }
}
