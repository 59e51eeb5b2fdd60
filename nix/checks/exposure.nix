# systemd's own judgement of the unit, as it is rendered.
{
  runCommand,
  systemd,
  gateway,
}:
runCommand "systemmanager-exposure" { nativeBuildInputs = [ systemd ]; } ''
  cp ${gateway.config.systemd.units."systemmanager-mcp.service".unit}/systemmanager-mcp.service .
  systemd-analyze security --offline=true --threshold=10 ./systemmanager-mcp.service | tee $out
''
