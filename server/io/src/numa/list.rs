//! The kernel's lists of CPUs and nodes: `0-3,8,10-11`.

use std::fmt;
use std::str::FromStr;

use super::NodeId;

/// More than any machine has of either; a list that claims more is none.
const NUMBER_MAX: u32 = 1 << 16;

/// CPUs, ascending, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuList(Vec<u32>);

/// Nodes, ascending, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeList(Vec<u32>);

/// The text is no list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no list of numbers such as 0-3,8")]
pub struct BadList(String);

fn parse(text: &str) -> Result<Vec<u32>, BadList> {
    let text = text.trim();
    let bad = || BadList(text.escape_debug().take(40).collect());
    let number = |text: &str| {
        // `parse` takes a sign, which the kernel never writes.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u32>().ok().filter(|number| *number < NUMBER_MAX);
        number.filter(|_| digits).ok_or_else(bad)
    };
    let mut numbers = Vec::new();
    for run in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        numbers.extend(first..=last);
        if numbers.len() > NUMBER_MAX as usize {
            return Err(bad());
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

fn write(numbers: &[u32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let runs = numbers.chunk_by(|before, after| before + 1 == *after);
    for (n, run) in runs.enumerate() {
        if n > 0 {
            f.write_str(",")?;
        }
        match run {
            [first, .., last] => write!(f, "{first}-{last}")?,
            [one] => write!(f, "{one}")?,
            [] => {}
        }
    }
    Ok(())
}

impl CpuList {
    /// The numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.binary_search(&cpu).is_ok()
    }

    /// Those that both have.
    #[must_use]
    pub fn both(&self, other: &Self) -> Self {
        Self(self.iter().filter(|cpu| other.contains(*cpu)).collect())
    }
}

impl NodeList {
    /// The nodes.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> {
        self.0.iter().copied().map(NodeId)
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.binary_search(&node.0).is_ok()
    }
}

impl FromStr for CpuList {
    type Err = BadList;

    fn from_str(text: &str) -> Result<Self, BadList> {
        parse(text).map(Self)
    }
}

impl FromStr for NodeList {
    type Err = BadList;

    fn from_str(text: &str) -> Result<Self, BadList> {
        parse(text).map(Self)
    }
}

impl FromIterator<u32> for CpuList {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut cpus: Vec<u32> = cpus.into_iter().collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(&self.0, f)
    }
}

impl fmt::Display for NodeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        let list: CpuList = "0-3,8,10-11\n".parse().unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 10, 11]);
        assert!(list.contains(8) && !list.contains(9));
        assert!("\n".parse::<CpuList>().unwrap().is_empty());
        assert_eq!(list.both(&"2-8".parse().unwrap()).to_string(), "2-3,8");
        assert_eq!("1,3".parse::<NodeList>().unwrap().iter().last(), Some(NodeId(3)));
    }

    #[test]
    fn what_is_no_list_is_refused_without_being_built() {
        for bad in ["x", "1-", "-1", "3-1", "1,,2", "+1", "0-4294967295", "1 2", "0x1", ","] {
            bad.parse::<CpuList>().unwrap_err();
        }
        let many = vec!["0-65535"; 1000].join(",");
        many.parse::<NodeList>().unwrap_err();
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(cpus in proptest::collection::vec(0_u32..3000, 0..200)) {
            let list: CpuList = cpus.into_iter().collect();
            prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
        }
    }
}
