# What the package fetches is what requirements.lock says: the same versions and hashes that `make` installs.
{ lib, self }:
system:
let
  text = builtins.readFile ../../requirements.lock;
  environment = self.packages.${system}.systemmanager.environment;
  lines = lib.splitString "\n" text;
  # Name, version and marker of every package that pip installs from the lock.
  pinned = lib.concatMap (
    line:
    let
      found = builtins.match "([a-z0-9-]+)==([^ ;]+)( ;.*)? \\\\" line;
    in
    lib.optional (found != null) {
      name = lib.elemAt found 0;
      version = lib.elemAt found 1;
    }
  ) lines;
  versions = lib.listToAttrs (map (one: lib.nameValuePair one.name one.version) pinned);
  hex =
    hash:
    builtins.convertHash {
      inherit hash;
      hashAlgo = "sha256";
      toHashFormat = "base16";
    };
  wrong = lib.filter (
    { source, ... }@wheel:
    (versions.${wheel.name} or null) != wheel.version
    || !lib.hasInfix "--hash=sha256:${wheel.sha256}" text
    || hex source.outputHash != wheel.sha256
    || lib.length (lib.filter (other: other.name == wheel.name) environment.sources) != 1
  ) environment.sources;
  # What the project asks for by name must be there.
  project = (builtins.fromTOML (builtins.readFile ../../pyproject.toml)).project.dependencies;
  asked = map (dependency: lib.head (builtins.match "([a-z0-9-]+).*" dependency)) project;
  missing = lib.filter (name: !lib.any (wheel: wheel.name == name) environment.sources) asked;
in
map (wheel: wheel.file) wrong ++ map (name: "${name} is not in the lock's wheels for ${system}") missing
