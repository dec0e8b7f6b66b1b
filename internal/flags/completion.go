package flags

import (
	"fmt"
	"io"
	"strings"
)

// PrintCompletion is the command "completion SHELL" of program, which has these commands: it prints a script for bash, zsh or fish
// and returns the exit code. The script reads the flags from the program's help, so it serves every version.
func PrintCompletion(out, errs io.Writer, program string, args []string, commands ...string) int {
	script, ok := map[string]string{"bash": bash, "zsh": zsh, "fish": fish}[strings.Join(args, " ")]
	if !ok {
		fmt.Fprintf(errs, "%s completion: name one shell, bash, zsh or fish, as in: source <(%[1]s completion bash)\n", program)
		return 2
	}
	_, err := strings.NewReplacer(
		"PROGRAM", program,
		"FUNCTION", "_"+strings.ReplaceAll(program, "-", "_"),
		"COMMANDS", strings.Join(commands, " "),
		"CASES", strings.Join(commands, "|"),
	).WriteString(out, script)
	if err != nil {
		fmt.Fprintln(errs, program+":", err)
		return 1
	}
	return 0
}

const bash = `# source <(PROGRAM completion bash)
FUNCTION() {
    local word=${COMP_WORDS[COMP_CWORD]} command=
    case ${COMP_WORDS[1]} in CASES) command=${COMP_WORDS[1]} ;; esac
    COMPREPLY=()
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" $command --help | sed -n 's/^  \(--[a-z0-9-]*\).*/\1/p')" -- "$word"))
    elif ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "COMMANDS" -- "$word"))
    fi
}
complete -o default -F FUNCTION PROGRAM
`

const zsh = `#compdef PROGRAM
# source <(PROGRAM completion zsh), or a file FUNCTION in a folder of $fpath
FUNCTION() {
    local command=
    case ${words[2]} in CASES) command=${words[2]} ;; esac
    if [[ ${words[CURRENT]} == -* ]]; then
        compadd -- ${(f)"$(${words[1]} $command --help | sed -n 's/^  \(--[a-z0-9-]*\).*/\1/p')"}
    elif ((CURRENT == 2)); then
        compadd -- COMMANDS
    else
        _files
    fi
}
compdef FUNCTION PROGRAM
`

const fish = `# PROGRAM completion fish | source
function FUNCTION
    set -l words (commandline -opc)
    set -l command
    contains -- "$words[2]" COMMANDS; and set command $words[2]
    $words[1] $command --help | sed -n 's/^  \(--[a-z0-9-]*\).*/\1/p'
end
complete -c PROGRAM -n 'string match -q -- "-*" (commandline -ct)' -f -a '(FUNCTION)'
complete -c PROGRAM -n __fish_use_subcommand -a 'COMMANDS'
`
