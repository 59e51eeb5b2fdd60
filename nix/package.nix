# The gateway itself, on top of its locked Python packages.
{
  lib,
  stdenv,
  callPackage,
  writeText,
  environment ? callPackage ./python.nix { },
}:
let
  inherit (environment) python sitePackages;
  version = lib.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (builtins.readFile ../src/systemmanager/__init__.py)
  );
  # -I: nothing of the environment or of the folder it is started in is imported.
  program = writeText "systemmanager" ''
    #!${python.interpreter} -I
    import site
    import sys

    for folder in ("@out@/${sitePackages}", "${environment}/${sitePackages}"):
        site.addsitedir(folder)

    from systemmanager.cli import main

    sys.exit(main())
  '';
in
stdenv.mkDerivation {
  pname = "systemmanager";
  inherit version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      (lib.fileset.fileFilter (file: !lib.hasSuffix ".pyc" file.name) ../src)
      ../pyproject.toml
      ../README.md
      ../LICENSE
    ];
  };
  strictDeps = true;
  nativeBuildInputs = [
    python
    python.pkgs.pip
    python.pkgs.setuptools
  ];

  installPhase = ''
    runHook preInstall
    python -m pip install --no-index --no-deps --no-build-isolation --no-cache-dir --disable-pip-version-check \
      --no-warn-script-location --prefix=$out .
    install -m 755 ${program} $out/bin/systemmanager
    substituteInPlace $out/bin/systemmanager --replace-fail @out@ $out
    runHook postInstall
  '';

  doInstallCheck = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
  installCheckPhase = ''
    HOME=$TMPDIR $out/bin/systemmanager --version
    HOME=$TMPDIR $out/bin/systemmanager check ${../targets.example.yaml} > table || test -s table
  '';

  passthru = { inherit environment; };
  meta = {
    description = "Control plane gateway between AI assistants and real infrastructure, over MCP";
    license = lib.licenses.mit;
    mainProgram = "systemmanager";
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
}
