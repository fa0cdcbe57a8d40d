//! Requests that gpudesk made, as the API server's own metrics count them.

use std::collections::BTreeMap;

use anyhow::Result;
use kube::Client;

/// Requests to the four kinds and to what gpudesk writes beside them, since the server started.
///
/// Per verb and resource the server's metrics do not tell clients apart. A test that patches desktops itself takes its own
/// patches off with [`Requests::without_users`]; what people create is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Writes by anybody to a `/status`, patches and updates of the four kinds, and writes to Roles,
    /// `RoleBindings` and service accounts.
    pub writes: u64,
    /// `GET` and `LIST` of single objects and lists by anybody but this test.
    pub reads: u64,
    /// The writes per verb and resource.
    pub by_kind: BTreeMap<String, u64>,
    /// All requests of the operator and the node daemons, of any verb: they are the only service
    /// accounts outside of `kube-system`, and the server counts those apart.
    pub of_programs: u64,
}

impl Requests {
    /// Reads the figures of now.
    pub async fn of_gpudesk(client: &Client) -> Result<Self> {
        let text = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        Ok(Self::parse(&text))
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let by_kind = self
            .by_kind
            .iter()
            .map(|(kind, count)| (kind.clone(), count - before.by_kind.get(kind).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Self {
            writes: self.writes - before.writes,
            reads: self.reads - before.reads,
            by_kind,
            of_programs: self.of_programs - before.of_programs,
        }
    }

    /// Takes patches off that the test itself made, as a user would.
    #[must_use]
    pub fn without_users(mut self, patches: u64) -> Self {
        self.writes = self.writes.saturating_sub(patches);
        if let Some(count) = self.by_kind.get_mut("PATCH desktops") {
            *count = count.saturating_sub(patches);
        }
        self
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            if line.starts_with("apiserver_flowcontrol_dispatched_requests_total{")
                && line.contains("flow_schema=\"service-accounts\"")
            {
                found.of_programs += line.rsplit_once(' ').map_or(0, |(_, count)| number(count));
            }
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else { continue };
            let Some((labels, count)) = rest.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                labels
                    .split(',')
                    .find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
            };
            let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else { continue };
            let subresource = label("subresource").unwrap_or_default();
            let count = number(count);
            let ours = label("group") == Some("gpudesk.dev");
            let beside = ["roles", "rolebindings", "serviceaccounts"].contains(&resource);
            let writes = match verb {
                "APPLY" | "PATCH" | "PUT" => ours || beside,
                _ => false,
            };
            if writes {
                found.writes += count;
                let slash = if subresource.is_empty() { "" } else { "/" };
                *found.by_kind.entry(format!("{verb} {resource}{slash}{subresource}")).or_default() += count;
            }
            if ours && (verb == "GET" || verb == "LIST") && resource != "desktops" {
                found.reads += count;
            }
        }
        found
    }
}

/// A count in the metrics' format, which writes large ones like `1.2e+06`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn number(text: &str) -> u64 {
    text.parse::<f64>().unwrap_or(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_to_a_status_are_counted_and_creations_by_people_are_not() {
        let text = "\
apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"gpudesk.dev\",resource=\"desktops\",scope=\"resource\",subresource=\"status\",verb=\"APPLY\",version=\"v1alpha1\"} 12
apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"gpudesk.dev\",resource=\"desktops\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1alpha1\"} 5
apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"gpudesk.dev\",resource=\"gpunodes\",scope=\"resource\",subresource=\"\",verb=\"GET\",version=\"v1alpha1\"} 2
apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"service-accounts\",priority_level=\"workload-low\"} 1.2e+01
apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"} 7
";
        let found = Requests::parse(text);
        assert_eq!((found.writes, found.reads, found.of_programs), (12, 2, 12));
    }
}
