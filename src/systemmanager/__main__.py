from systemmanager.cli import main

main()
