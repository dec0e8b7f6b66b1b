package telemetry

// Internals are the proxy's own counters: what happens to connections and configuration rather than to requests.
// Every field may be used from any goroutine; the names that a scrape shows stand in internals.write.
type Internals struct {
	ConnectionsOpened  Counter // downstream connections accepted
	ConnectionsClosed  Counter
	ConnectionsRefused Counter // not served: limits, STRICT without TLS
	ConnectionsShed    Counter // ended because there was no memory left
	DetectionTimeouts  Counter // nothing came to tell the protocol by: taken as opaque
	TLSFailures        Counter // handshakes that failed, either side
	ProtocolErrors     Counter // downstream messages that were refused by the codecs
	Panics             Counter // caught; the exchange was ended
	Retries            Counter // attempts beyond the first
	RetriesRefused     Counter // by a retry budget or limit
	ShadowDenied       Counter // requests that a dry-run policy would have denied
	Mirrored           Counter // copies of requests that were started
	MirrorsDropped     Counter // copies that were not: too many were under way

	ConfigApplied   Counter
	ConfigRejected  Counter
	ConfigTimestamp Gauge // when the plan in force was applied, Unix seconds; 0 never
	ControlUp       Gauge // 1 while the control stream stands

	CertificateExpiry Gauge // NotAfter of the workload certificate, Unix seconds; 0 none
	Draining          Gauge // 1 from the moment that draining begins
	MemoryShort       Gauge // 1 while nothing new is begun because memory is short
}

func (in *Internals) write(w *Writer) {
	for _, c := range [...]struct {
		name, help string
		v          *Counter
	}{
		{"malha_proxy_connections_opened_total", "Downstream connections accepted.", &in.ConnectionsOpened},
		{"malha_proxy_connections_closed_total", "Downstream connections ended.", &in.ConnectionsClosed},
		{"malha_proxy_connections_refused_total", "Downstream connections that were not served.", &in.ConnectionsRefused},
		{"malha_proxy_connections_shed_total", "Downstream connections ended because no memory was left.", &in.ConnectionsShed},
		{"malha_proxy_protocol_detection_timeouts_total", "Connections whose protocol could not be told in time.", &in.DetectionTimeouts},
		{"malha_proxy_tls_failures_total", "TLS handshakes that failed.", &in.TLSFailures},
		{"malha_proxy_protocol_errors_total", "Downstream messages refused as malformed.", &in.ProtocolErrors},
		{"malha_proxy_panics_total", "Panics caught while serving.", &in.Panics},
		{"malha_proxy_retries_total", "Attempts beyond the first.", &in.Retries},
		{"malha_proxy_retries_refused_total", "Retries refused by a budget or limit.", &in.RetriesRefused},
		{"malha_proxy_shadow_denied_total", "Requests that a dry-run policy would have denied.", &in.ShadowDenied},
		{"malha_proxy_mirrored_total", "Copies of requests sent to mirrors.", &in.Mirrored},
		{"malha_proxy_mirrors_dropped_total", "Copies of requests not sent because too many were under way.", &in.MirrorsDropped},
		{"malha_proxy_config_applied_total", "Plans put in force.", &in.ConfigApplied},
		{"malha_proxy_config_rejected_total", "Plans that could not be used; the one before stayed in force.", &in.ConfigRejected},
	} {
		w.Family(c.name, "counter", c.help)
		w.Uint(c.name, c.v.Value())
	}
	for _, g := range [...]struct {
		name, help string
		v          *Gauge
	}{
		{"malha_proxy_config_last_applied_timestamp_seconds", "When the plan in force was applied; 0 never.", &in.ConfigTimestamp},
		{"malha_proxy_control_connected", "1 while the control stream stands.", &in.ControlUp},
		{"malha_proxy_certificate_expiry_timestamp_seconds", "When the workload certificate expires; 0 without one.", &in.CertificateExpiry},
		{"malha_proxy_memory_short", "1 while new connections and requests are refused because memory is short.", &in.MemoryShort},
		{"malha_proxy_draining", "1 from the moment that draining begins.", &in.Draining},
	} {
		w.Family(g.name, "gauge", g.help)
		w.Int(g.name, g.v.Value())
	}
}
