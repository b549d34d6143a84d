//! Ways out: HTTP. Exporters read a snapshot, never the table.
