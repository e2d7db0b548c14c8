//! A real Prometheus scrapes a daemon.

use super::*;

impl Prometheus {
    pub(crate) fn start(berth: &Berth) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = repository("contrib/prometheus/berth.rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\n\
             scrape_configs:\n  - job_name: berth\n    static_configs: [{{targets: [\"127.0.0.1:{PORT}\"]}}]\n",
            rules.display()
        );
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", berth.host_process()))
            .arg("--")
            .arg(programs().join("prometheus"))
            .arg(format!("--config.file={}/prometheus.yml", folder.path().display()))
            .arg(format!("--storage.tsdb.path={}/data", folder.path().display()))
            .arg("--web.listen-address=127.0.0.1:9090")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, host: berth.host_process(), folder }
    }

    /// Calls an endpoint of its API; none if it does not answer yet.
    fn api(&self, path: &str, query: Option<&str>) -> Option<serde_json::Value> {
        let url = format!("http://127.0.0.1:9090/api/v1/{path}");
        let query = query.map(|query| format!("query={query}"));
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.host))
            .args(["--", "curl", "--silent", "--get", &url]);
        if let Some(query) = &query {
            command.args(["--data-urlencode", query]);
        }
        serde_json::from_slice(&command.output().unwrap().stdout).ok()
    }

    /// Returns the summary of an alert, if it fires.
    pub(crate) fn firing(&self, name: &str) -> Option<String> {
        let alerts = self.api("alerts", None)?;
        let mut alerts = alerts["data"]["alerts"].as_array()?.iter();
        let found =
            alerts.find(|alert| alert["labels"]["alertname"] == name && alert["state"] == "firing")?;
        Some(found["annotations"]["summary"].as_str()?.to_owned())
    }

    fn query(&self, query: &str) -> Vec<serde_json::Value> {
        let answer = self.api("query", Some(query)).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// Waits until `found` returns something.
    pub(crate) fn wait_for<T>(&self, what: &str, found: impl Fn(&Self) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            if Instant::now() > until {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("{what}: {log}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn wait_for_series(&self, query: &str) -> Vec<serde_json::Value> {
        self.wait_for(query, |prometheus| {
            prometheus.api("query", Some(query))?;
            Some(prometheus.query(query)).filter(|series| !series.is_empty())
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Returns all queries of the dashboard, with its variables replaced.
fn dashboard_queries() -> Vec<String> {
    fn collect(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(|expr| expr.as_str()).map(str::to_owned));
                fields.values().for_each(|value| collect(value, found));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let text = fs::read_to_string(repository("contrib/grafana/berth.json")).unwrap();
    let mut queries = Vec::new();
    collect(&serde_json::from_str(&text).unwrap(), &mut queries);
    queries.iter().map(|query| query.replace("$instance", ".*").replace("$__rate_interval", "1m")).collect()
}

/// Returns the names of metrics in a text, without the endings of a histogram's series.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let names = words.filter(|word| word.starts_with("berth_") || word.starts_with("process_"));
    names.map(|name| name.trim_end_matches("_bucket").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_accepts_metrics_rules_and_queries_and_alerts() {
    let mut berth = Berth::start_with(CONFIG).await;
    berth.load_image().await;
    work(&mut berth).await;
    let promtool = programs().join("promtool");
    let rules = repository("contrib/prometheus/berth.rules.yml");
    let checked = Command::new(&promtool).args(["check", "rules"]).arg(&rules).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let text = scrape(&berth);
    let mut lint = Command::new(&promtool)
        .args(["check", "metrics", "--extended"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    lint.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let lint = lint.wait_with_output().unwrap();
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stderr));
    assert!(lint.stderr.is_empty(), "{}", String::from_utf8_lossy(&lint.stderr));

    let known = types(&text);
    let queries = dashboard_queries();
    let used = names_in(&(queries.join(" ") + &fs::read_to_string(&rules).unwrap()));
    assert!(used.len() > 20, "{used:?}");
    for name in &used {
        assert!(known.contains_key(name), "the unknown metric {name} is used in contrib");
    }

    let pod = berth.run_pod(berth.pod_config("victim")).await;
    let keeper_of = pod.clone();
    let prometheus = Prometheus::start(&berth);
    prometheus.wait_for_series("up{job=\"berth\"} == 1");
    let pods = prometheus.wait_for_series("berth_pods{state=\"ready\"}");
    assert_eq!(pods[0]["value"][1], "2", "{pods:?}");
    for query in &queries {
        prometheus.query(query);
    }
    let loaded = prometheus.api("rules", None).unwrap();
    let unhealthy: Vec<_> = loaded["data"]["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["lastError"].as_str().is_some_and(|error| !error.is_empty()))
        .collect();
    assert!(unhealthy.is_empty(), "{unhealthy:?}");
    assert_eq!(prometheus.firing("BerthKeeperLost"), None);
    // The increase is measured from a sample before it.
    prometheus.wait_for_series("count_over_time(berth_keepers_lost_total[1m]) > 1");
    leftovers::kill_keeper_of(&keeper_of);
    let summary = prometheus.wait_for("BerthKeeperLost", |prometheus| prometheus.firing("BerthKeeperLost"));
    assert!(summary.contains("keepers ended on 127.0.0.1:9470"), "{summary}");
    prometheus.wait_for_series("berth_pods{state=\"ready\"} == 1");
    drop(prometheus);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
