// How the extension is written: what GNOME's own extensions keep to, as far as eslint knows it by itself.

const globals = names => Object.fromEntries(names.map(name => [name, 'readonly']));

export default [{
    files: ['extension/*.js'],
    languageOptions: {
        ecmaVersion: 2022,
        sourceType: 'module',
        globals: globals(['console', 'global']),
    },
    rules: {
        'array-callback-return': 'error',
        'consistent-return': 'error',
        'curly': ['error', 'multi-or-nest', 'consistent'],
        'eqeqeq': 'error',
        'no-caller': 'error',
        'no-constant-condition': 'error',
        'no-dupe-keys': 'error',
        'no-empty': 'error',
        'no-eval': 'error',
        'no-shadow': 'error',
        'no-undef': 'error',
        'no-unreachable': 'error',
        'no-unused-vars': ['error', {argsIgnorePattern: '^_'}],
        'no-use-before-define': ['error', {functions: false, classes: false}],
        'no-var': 'error',
        'no-warning-comments': 'error',
        'object-shorthand': 'error',
        'prefer-arrow-callback': 'error',
        'prefer-const': 'error',
        'require-await': 'error',
    },
}];
