//! The timeline as one page that needs nothing else: a template with style and script inside, and the run as JSON in it.
//!
//! No text of a run is ever put into markup: the script reads the JSON and sets text, so that nothing in a log can become
//! part of the page. The JSON itself cannot end its element either ([`embedded`]).

use super::Timeline;
use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("page.html");
/// Where in the template the run's JSON goes.
const PLACE: &str = "\"RUN\"";

/// The page.
#[must_use]
pub fn page(timeline: &Timeline) -> String {
    TEMPLATE.replacen(PLACE, &embedded(&data(timeline)), 1)
}

/// JSON that may stand inside of a script element: no `<` is left in it, which only strings have.
fn embedded(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c")
}

/// The run, as the script reads it. Bars and marks are arrays, since there are many.
fn data(timeline: &Timeline) -> Value {
    let mut texts = Texts::default();
    let bars: Vec<Value> = timeline
        .bars
        .iter()
        .map(|bar| {
            let (guest, request) =
                bar.request.map_or((None, None), |(guest, number)| (Some(guest), Some(number)));
            let (sector, sectors) =
                bar.sectors.map_or((None, None), |(sector, sectors)| (Some(sector), Some(sectors)));
            json!([
                bar.lane,
                bar.row,
                bar.from_ns,
                bar.to_ns - bar.from_ns,
                texts.number(bar.kind),
                texts.number(&bar.ended),
                guest,
                request,
                bar.queue,
                sector,
                sectors,
            ])
        })
        .collect();
    let marks: Vec<Value> = timeline
        .marks
        .iter()
        .map(|mark| json!([mark.at_ns, mark.lane, texts.number(mark.kind), texts.number(&mark.text)]))
        .collect();
    let lanes: Vec<Value> = timeline
        .lanes
        .iter()
        .map(|lane| json!({ "group": lane.group.name(), "name": lane.name, "rows": lane.rows }))
        .collect();
    let last: Vec<Value> =
        timeline.last.iter().map(|last| json!([last.at_ns, last.class, last.text])).collect();
    let failure = timeline.failure.as_ref().map(|failure| {
        json!({ "checker": failure.checker, "what": failure.what, "at": failure.at_ns, "requests": timeline.accused() })
    });
    json!({
        "scenario": timeline.scenario,
        "title": timeline.title,
        "seed": timeline.seed,
        "end": timeline.end_ns,
        "failure": failure,
        "lanes": lanes,
        "bars": bars,
        "marks": marks,
        "last": last,
        "texts": texts.list,
    })
}

/// Texts that come again and again, each once.
#[derive(Default)]
struct Texts {
    list: Vec<String>,
    numbers: std::collections::BTreeMap<String, usize>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        self.list.push(text.to_owned());
        self.numbers.insert(text.to_owned(), self.list.len() - 1);
        self.list.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_the_script() {
        let text = embedded(&json!({ "what": "</script><!--<script>" }));
        assert!(!text.contains('<'), "{text}");
        let read: Value = serde_json::from_str(&text).expect("still JSON");
        assert_eq!(read["what"], "</script><!--<script>");
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
    }
}
