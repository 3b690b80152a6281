//! The log: lines on stderr, for people or as JSON.
//!
//! A JSON line has what the spans around it know (`load_id`, `trace_id`, `uid`, `lane`, `method`) at
//! its top, beside `timestamp`, `level`, `target`, and the event's own fields in `fields`. Of nested
//! spans the inner one's value counts.

use std::fmt;
use std::io::IsTerminal;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, layer};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry;
use tracing_subscriber::registry::{LookupSpan, Scope};

use crate::config::LogForm;

/// Begins to log. A subscriber that is there already (another daemon of a test) stays.
pub(crate) fn start(form: LogForm, level: LevelFilter) {
    let lines = layer().with_writer(std::io::stderr);
    let started = match form {
        LogForm::Human => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            registry().with(lines.with_filter(level)).try_init()
        }
        LogForm::Json => {
            let lines = lines.fmt_fields(JsonFields::new()).event_format(JsonLine);
            registry().with(lines.with_filter(level)).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("a log subscriber is installed already");
    }
}

/// See the module's head.
struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut of_spans = Map::new();
        for span in ctx.event_scope().into_iter().flat_map(Scope::from_root) {
            let extensions = span.extensions();
            let known = extensions.get::<FormattedFields<JsonFields>>();
            let known = known.and_then(|known| serde_json::from_str(&known.fields).ok());
            of_spans.extend(known.unwrap_or_else(Map::new));
        }
        let mut fields = String::new();
        ctx.format_fields(Writer::new(&mut fields), event)?;
        let metadata = event.metadata();
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\",\"level\":\"{}\"", metadata.level())?;
        for (key, value) in of_spans {
            write!(writer, ",{}:{value}", Value::String(key))?;
        }
        let target = Value::String(metadata.target().to_owned());
        writeln!(writer, ",\"fields\":{fields},\"target\":{target}}}")
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::field::Empty;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_spans_know_is_at_the_top_of_a_line() {
        let heard = Lines::default();
        let writer = heard.clone();
        let lines = layer().with_writer(move || writer.clone());
        let lines = lines.fmt_fields(JsonFields::new()).event_format(JsonLine);
        tracing::subscriber::with_default(registry().with(lines), || {
            tracing::info!(n = 1, "\"outside\"");
            let outer = tracing::info_span!("outer", trace_id = "t", uid = 5, load_id = Empty);
            outer.in_scope(|| {
                tracing::warn!("before");
                outer.record("load_id", "l");
                tracing::info_span!("inner", uid = 6).in_scope(|| tracing::info!("inside"));
            });
        });
        let text = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["fields"]["message"], "\"outside\"");
        assert_eq!((&lines[0]["fields"]["n"], &lines[0]["level"]), (&1.into(), &"INFO".into()));
        assert!(lines[0].get("trace_id").is_none() && lines[0]["timestamp"].is_string());
        assert_eq!((&lines[1]["trace_id"], &lines[1]["uid"]), (&"t".into(), &5.into()));
        assert!(lines[1].get("load_id").is_none(), "{text}");
        assert_eq!((&lines[2]["load_id"], &lines[2]["uid"]), (&"l".into(), &6.into()));
        assert_eq!(lines[2]["trace_id"], "t");
    }
}
