//! The settings of what the daemon says and leaves behind: the form of its log, from which level on
//! it has lines, and whether a crash may leave a core dump.

use tracing::level_filters::LevelFilter;

use super::{ConfigError, Take};

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogForm {
    /// Lines for people.
    Human,
    /// One object a line.
    Json,
}

impl LogForm {
    /// As it is written.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

/// Levels, from the one with the fewest lines on.
const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// A level as it is written.
pub(super) fn level_name(level: LevelFilter) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("off", |(name, _)| name)
}

impl Take<'_> {
    /// The form of the log.
    pub(super) fn log(&mut self) -> Result<LogForm, ConfigError> {
        self.read("log", LogForm::Human, |text| match text {
            "human" => Ok(LogForm::Human),
            "json" => Ok(LogForm::Json),
            _ => Err("is human or json"),
        })
    }

    /// From which level on it has lines.
    pub(super) fn log_level(&mut self) -> Result<LevelFilter, ConfigError> {
        self.read("log_level", LevelFilter::INFO, |text| {
            let level = LEVELS.iter().find(|(name, _)| *name == text).map(|(_, level)| *level);
            level.ok_or("is error, warn, info, debug or trace")
        })
    }
}
