//! Reads the two trace files, and draws the arrivals of one seed from them.

use std::collections::BTreeMap;

use super::cluster::{MOST_GPUS, Node, Shape, WHOLE, World};
use super::{Result, real};

/// The contents of a node file and a pod file.
pub(crate) struct Trace {
    nodes: Vec<Node>,
    pods: Vec<Shape>,
    models: Vec<String>,
}

impl Trace {
    /// Parses the files. The names are for messages. Errors name the file, the line and the field.
    pub(crate) fn parse(nodes: (&str, &str), pods: (&str, &str)) -> Result<Self> {
        let mut trace = Self { nodes: Vec::new(), pods: Vec::new(), models: Vec::new() };
        for row in Table::parse(nodes.0, nodes.1)? {
            let gpus = row.number("gpu")?;
            let count = usize::try_from(gpus).ok().filter(|count| *count <= MOST_GPUS);
            let count = count.ok_or_else(|| row.wrong("gpu", &format!("more than {MOST_GPUS}")))?;
            let model = trace.model(row.text("model")?);
            trace.nodes.push(Node::new(row.number("cpu_milli")?, row.number("memory_mib")?, count, model));
        }
        for row in Table::parse(pods.0, pods.1)? {
            let shape = trace.shape(&row)?;
            trace.pods.push(shape);
        }
        if trace.nodes.iter().map(Node::gpu_total).sum::<u64>() == 0 {
            return Err(format!("{}: no node has a GPU", nodes.0));
        }
        if trace.pods.iter().all(|pod| pod.gpus == 0) {
            return Err(format!("{}: no pod asks for a GPU", pods.0));
        }
        Ok(trace)
    }

    fn model(&mut self, name: &str) -> usize {
        self.models.iter().position(|known| known == name).unwrap_or_else(|| {
            self.models.push(name.to_owned());
            self.models.len() - 1
        })
    }

    fn shape(&mut self, row: &Row) -> Result<Shape> {
        let gpus =
            usize::try_from(row.number("num_gpu")?).map_err(|e| row.wrong("num_gpu", &e.to_string()))?;
        let milli =
            u32::try_from(row.number("gpu_milli")?).map_err(|e| row.wrong("gpu_milli", &e.to_string()))?;
        let milli = match (gpus, milli.min(WHOLE)) {
            (0, _) => 0,
            (_, 0) => return Err(row.wrong("gpu_milli", "0 although the pod asks for a GPU")),
            (2.., 1..WHOLE) => return Err(row.wrong("gpu_milli", "a fraction of more than one GPU")),
            (_, milli) => milli,
        };
        let allowed = row.text_or_empty("gpu_spec").split('|').filter(|name| !name.is_empty() && gpus > 0);
        let mut models: Vec<usize> = allowed.map(|name| self.model(name)).collect();
        models.sort_unstable();
        models.dedup();
        Ok(Shape { cpu: row.number("cpu_milli")?, memory: row.number("memory_mib")?, gpus, milli, models })
    }

    /// What arrives with this seed, and in which order equal nodes are preferred.
    ///
    /// As published: all pods in random order, then random ones taken away or repeated until they ask
    /// for `load` times the GPU of the cluster; nodes are in random order.
    pub(crate) fn world(&self, seed: u64, load: f64) -> World {
        let mut random = Random(seed);
        let mut pods: Vec<&Shape> = self.pods.iter().collect();
        random.shuffle(&mut pods);
        let capacity: u64 = self.nodes.iter().map(Node::gpu_total).sum();
        let wanted = real(capacity) * load;
        let mut total: u64 = pods.iter().map(|pod| pod.gpu_total()).sum();
        while real(total) > wanted {
            total -= pods.remove(random.below(pods.len())).gpu_total();
        }
        loop {
            let pod = &self.pods[random.below(self.pods.len())];
            if real(total + u64::from(pod.milli)) > wanted {
                break;
            }
            total += pod.gpu_total();
            pods.push(pod);
        }
        let mut counts: BTreeMap<&Shape, u64> = BTreeMap::new();
        for pod in &self.pods {
            *counts.entry(pod).or_default() += 1;
        }
        let index: BTreeMap<&Shape, usize> =
            counts.keys().enumerate().map(|(i, shape)| (*shape, i)).collect();
        let arrivals = pods.iter().map(|pod| index[pod]).collect();
        let mut nodes = self.nodes.clone();
        random.shuffle(&mut nodes);
        World {
            nodes,
            shapes: counts.keys().map(|&shape| shape.clone()).collect(),
            mix: counts.values().copied().collect(),
            arrivals,
            models: self.models.len(),
        }
    }
}

/// `SplitMix64`: the same numbers on every machine and in every version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        let scaled = (u128::from(self.next()) * limit as u128) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A comma-separated file with a heading.
struct Table;

impl Table {
    fn parse<'a>(file: &'a str, text: &'a str) -> Result<Vec<Row<'a>>> {
        let mut lines = text.lines().map(str::trim_end);
        let heading: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let mut rows = Vec::new();
        for (i, line) in lines.enumerate() {
            if line.is_empty() {
                continue;
            }
            let fields: Vec<&str> = line.split(',').collect();
            if fields.len() != heading.len() {
                let (has, wants) = (fields.len(), heading.len());
                return Err(format!("{file}, line {}: {has} fields where the heading has {wants}", i + 2));
            }
            rows.push(Row { file, line: i + 2, heading: heading.clone(), fields });
        }
        if rows.is_empty() { Err(format!("{file}: no rows")) } else { Ok(rows) }
    }
}

struct Row<'a> {
    file: &'a str,
    line: usize,
    heading: Vec<&'a str>,
    fields: Vec<&'a str>,
}

impl Row<'_> {
    fn wrong(&self, field: &str, reason: &str) -> String {
        format!("{}, line {}, field {field}: {reason}", self.file, self.line)
    }

    fn text_or_empty(&self, field: &str) -> &str {
        let place = self.heading.iter().position(|name| *name == field);
        place.map_or("", |place| self.fields[place])
    }

    fn text(&self, field: &str) -> Result<&str> {
        let found = self.heading.contains(&field).then(|| self.text_or_empty(field));
        found.ok_or_else(|| self.wrong(field, "missing in the heading"))
    }

    fn number(&self, field: &str) -> Result<u64> {
        let text = self.text(field)?;
        text.parse().map_err(|_| self.wrong(field, &format!("{text:?} is not a whole number")))
    }
}
