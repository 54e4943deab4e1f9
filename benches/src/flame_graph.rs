//! A flame graph as one SVG file without scripts: width is the share of samples, a title on each box says which.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 1600.0;
const ROW: usize = 17;
/// Boxes narrower than this are left out.
const NARROWEST: f64 = 0.5;
/// Width of a letter.
const LETTER: f64 = 6.6;

#[derive(Default)]
struct Node<'a> {
    count: u64,
    below: BTreeMap<&'a str, Node<'a>>,
}

/// Draws stacks (outermost first) with their counts.
pub fn draw(stacks: &BTreeMap<Vec<String>, u64>) -> String {
    let mut root = Node::default();
    for (stack, &count) in stacks {
        root.count += count;
        let mut at = &mut root;
        for name in stack {
            at = at.below.entry(name).or_default();
            at.count += count;
        }
    }
    let depth = stacks.keys().map(Vec::len).max().unwrap_or(0) + 1;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{}\" font-family=\"monospace\" font-size=\"11\">\n",
        depth * ROW
    );
    let all = root.count.max(1);
    boxes(&mut svg, "all", &root, 0.0, depth - 1, all);
    svg.push_str("</svg>\n");
    svg
}

fn boxes(svg: &mut String, name: &str, node: &Node<'_>, left: f64, row: usize, all: u64) {
    let width = node.count as f64 / all as f64 * WIDTH;
    if width < NARROWEST {
        return;
    }
    let hue = name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 50;
    let fits: String = name.chars().take((width / LETTER) as usize).collect();
    let (top, text) = (row * ROW, top_text(row));
    writeln!(
        svg,
        "<g><title>{} ({} samples, {:.2} %)</title><rect x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\" \
         fill=\"hsl({hue},80%,65%)\"/><text x=\"{:.1}\" y=\"{text}\">{}</text></g>",
        escaped(name),
        node.count,
        100.0 * node.count as f64 / all as f64,
        ROW - 1,
        left + 2.0,
        escaped(&fits)
    )
    .expect("writing to a string does not fail");
    let mut left = left;
    for (name, below) in &node.below {
        if row > 0 {
            boxes(svg, name, below, left, row - 1, all);
        }
        left += below.count as f64 / all as f64 * WIDTH;
    }
}

fn top_text(row: usize) -> usize {
    row * ROW + ROW - 5
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_is_the_share_of_samples() {
        let stack = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let svg = draw(&BTreeMap::from([(stack(&["main", "a<T>"]), 3), (stack(&["main", "b"]), 1)]));
        assert!(svg.contains("<title>a&lt;T&gt; (3 samples, 75.00 %)</title><rect x=\"0.0\" y=\"0\" width=\"1200.0\""), "{svg}");
        assert!(svg.contains("<title>b (1 samples, 25.00 %)</title><rect x=\"1200.0\" y=\"0\" width=\"400.0\""), "{svg}");
        assert!(draw(&BTreeMap::new()).ends_with("</svg>\n"));
    }
}
